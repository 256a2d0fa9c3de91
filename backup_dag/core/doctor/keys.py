"""The key that encrypts, the ones that open what is there, and what tells our backups from others'."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import log2

from backup_dag.core.authenticity import authenticator, demanded
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import Database
from backup_dag.core.doctor.finding import Finding, ok, warn
from backup_dag.core.errors import DiskError, StoreError
from backup_dag.core.key import Fingerprints, encryption_key, known_fingerprints
from backup_dag.core.settings import Settings

_ENOUGH_BITS = 80


def key(settings: Settings) -> Iterator[Finding]:
    """What new backups are encrypted with. Raises ConfigurationError where that is nothing, or two things."""
    key = encryption_key(settings)
    if key.mode == "off":
        yield warn(
            "key", "BACKUP_ENCRYPTION=off: backups are NOT encrypted", "set BACKUP_ENCRYPTION_KEY, and on"
        )
    elif key.mode == "recipients":
        yield ok("key", f"encrypts to {', '.join(key.fingerprints)}; keep the secret key off this host")
    else:
        bits = _strength(key.passphrase or "")
        advice = "openssl rand -base64 32 makes a good one; keep the old one for the old backups"
        said = f"passphrase of fingerprint {key.fingerprints[0]}, at most {bits:.0f} bits"
        yield ok("key", said) if bits >= _ENOUGH_BITS else warn("key", f"{said}: too weak", advice)


def old_passphrases(settings: Settings, databases: tuple[Database, ...]) -> Iterator[Finding]:
    """Whether what is set here opens every copy of each database's backups."""
    keys, catalog = known_fingerprints(settings), Catalog(open_stores(settings))
    if keys.old:
        yield ok("old passphrases", f"set here: {', '.join(keys.old)}")
    for database in databases:
        with suppress(DiskError, StoreError):  # of a store that fails is spoken elsewhere
            yield from _opens(database.name, catalog.every(database.name), keys)


def _opens(database: str, backups: Sequence[Backup], keys: Fingerprints) -> Iterator[Finding]:
    """`backups`: the newest first."""
    under: dict[str, list[str]] = {}
    for backup in backups:
        copies = [copy for copy in backup.copies if copy.manifest]
        for print_ in {p for copy in copies for p in _under_a_passphrase(copy)}:
            under.setdefault(print_, []).append(str(backup.id))
    what = f"{database} passphrase"
    left = [copy.store.address(name) for each in backups for copy in each.copies for name in copy.unnamed]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        said = f"a rekey was interrupted, and left {left[0]}{more}"
        yield warn(what, f"{said}, under another passphrase", "backup-dag rekey removes what is left")
    for print_, ids in under.items():
        many = f"{len(ids)} of {len(backups)} backups, {ids[0]} the newest of them,"
        if keys.what_is(print_) == "unknown":
            advice = (
                "where it was changed on purpose, give this one in BACKUP_ENCRYPTION_OLD_KEY"
                " (BACKUP_ENCRYPTION_OLD_KEYS_FILE); else set BACKUP_ENCRYPTION_KEY to it"
            )
            said = f"{many} have copies that cannot be read: their passphrase {print_} is not set here"
            yield warn(what, said, advice)
        elif keys.what_is(print_) == "old":
            said = f"{many} have copies under an old passphrase, {print_}, that is set here"
            yield ok(what, f"{said}; backup-dag rekey re-encrypts them")


def _under_a_passphrase(copy: Copy) -> list[str]:
    """The fingerprint of the one that it is under; none where it is under none."""
    made_with = copy.manifest.encryption if copy.manifest else None
    return made_with.key_fingerprints if made_with and made_with.mode == "symmetric" else []


def authenticity(settings: Settings) -> Iterator[Finding]:
    """What tells our backups from those that somebody else puts into the bucket."""
    authenticator(settings)  # a signing key is tried out by it
    if settings.backup_gpg_signing_key:
        yield ok("authenticity", f"manifests are signed by {' or '.join(settings.backup_gpg_signing_key)}")
    elif demanded(settings):
        yield ok("authenticity", "manifests are authenticated by the passphrase")
    else:
        said = "nothing tells our backups from what somebody else puts into the bucket"
        yield warn("authenticity", said, "set BACKUP_GPG_SIGNING_KEY to a key of this host's own")
    if demanded(settings) and settings.backup_accept_unauthenticated == "on":
        said = "BACKUP_ACCEPT_UNAUTHENTICATED=on: backups that anyone could have made are accepted"
        yield warn("authenticity", said, "turn it off once no backup from before is needed")


def _strength(passphrase: str) -> float:
    """An upper bound in bits: as if each character were drawn at random from those of its kinds."""
    kinds = ((str.islower, 26), (str.isupper, 26), (str.isdigit, 10), (lambda c: not c.isalnum(), 32))
    alphabet = sum(count for kind, count in kinds if any(kind(character) for character in passphrase))
    return min(len(passphrase), 2 * len(set(passphrase))) * log2(alphabet or 1)
