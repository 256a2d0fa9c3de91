"""Who wrote a manifest: proven by a key that whoever can write to the bucket does not have.

A manifest holds the digests of all that belongs to its backup, so what authenticates it authenticates the
backup: a MAC whose key is derived from the passphrase, or the signature of BACKUP_GPG_SIGNING_KEY. What this
host puts on its own manifests it demands of every other. docs/format.md says how to check one by hand.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.errors import BackupDagError, ConfigurationError, IntegrityError
from backup_dag.core.key import another_passphrase, keyring, passphrase_fingerprint, passphrase_of
from backup_dag.core.manifest import (
    MANIFEST,
    Authentication,
    ByPassphrase,
    BySignature,
    Encryption,
    Manifest,
)
from backup_dag.core.settings import Settings
from backup_dag.core.signing import able_to_sign, knows, sign, signers

_SALT = b"backup-dag manifest authentication 1"
_OUT_OF_PLACE = "backups of this host are authenticated"
_FROM_BEFORE = "BACKUP_ACCEPT_UNAUTHENTICATED=on accepts backups from before that"


def canonical(document: bytes) -> bytes:
    """What is authenticated: the document without `authentication`, keys sorted, no spaces, ASCII.

    It is made from the text as it is stored, so fields that this version does not know are covered too.
    Raises ValueError for what is not JSON, or could be read in two ways.
    """
    said = json.loads(document, object_pairs_hook=_each_once)
    said.pop("authentication", None)
    return json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def authenticator(settings: Settings) -> Callable[[Manifest], Manifest]:
    """What puts this host's authentication on the manifests it makes; nothing, where it has no key for it.

    It is made before the backup is: raises ConfigurationError where there is a signing key that cannot sign.
    """
    prove = _by_signature(settings) if settings.backup_gpg_signing_key else _by_passphrase(settings)
    if prove is None:
        return lambda manifest: manifest

    def authenticated(manifest: Manifest) -> Manifest:
        """Over what `to_json` will write."""
        return manifest.model_copy(update={"authentication": prove(canonical(manifest.to_json().encode()))})

    return authenticated


def check(settings: Settings, copy: Copy) -> Authentication | None:
    """How a copy's manifest is authenticated; None where it is not, and nothing here demands that it be.

    Raises:
        IntegrityError: it was changed, or somebody else wrote it.
        ConfigurationError: nothing here can tell, since it takes another passphrase or key.
    """
    manifest = copy.its_manifest()
    where, said = copy.store.address(manifest.id.file(MANIFEST)), manifest.authentication
    if said is None:
        if demanded(settings) and settings.backup_accept_unauthenticated == "off":
            raise _forged(f"{where} is not authenticated, and {_OUT_OF_PLACE}; {_FROM_BEFORE}")
        return None
    try:
        covered = canonical(copy.document)
    except (ValueError, RecursionError):
        raise _forged(f"{where} could be read in two ways, so somebody else wrote it") from None
    try:
        if isinstance(said, ByPassphrase):
            _check_mac(settings, said, manifest.encryption, covered, where)
        else:
            _check_signature(settings, said, covered, where)
    except ConfigurationError:
        if settings.backup_accept_unauthenticated == "off":
            raise
        return None
    return said


def is_authentic(settings: Settings, copy: Copy) -> bool:
    """Whether `check` has nothing to say against it."""
    return _against(settings, copy) is None


@dataclass(frozen=True)
class LeftOut:
    """A copy that is passed over, and why: it is forged, or nothing here can tell whose it is."""

    address: str
    why: BackupDagError

    @property
    def forged(self) -> bool:
        return isinstance(self.why, IntegrityError)


def authentic_part(settings: Settings, backup: Backup) -> tuple[Backup, list[LeftOut]]:
    """The backup as the stores have it whose copies are authentic, where the nearest one's is not; and the
    others, which are left out.

    Otherwise a copy that was forged would be held to be the backup, and the true one another of its name.
    """
    readable = [copy for copy in backup.copies if copy.manifest]
    against = {copy.store: why for copy in backup.copies if (why := _against(settings, copy))}
    authentic = [copy.store for copy in readable if copy.store not in against]
    if not authentic or readable[0].store in authentic:
        return backup, []
    left_out = [LeftOut(store.address(), why) for store, why in against.items()]
    return replace(Catalog(authentic).load(backup.id), missed=backup.missed), left_out


def _against(settings: Settings, copy: Copy) -> BackupDagError | None:
    try:
        check(settings, copy)
    except BackupDagError as error:
        return error
    return None


def in_words(authentication: Authentication | None) -> str:
    if authentication is None:
        return "NOT authenticated: whoever can write to the store could have made it"
    if isinstance(authentication, ByPassphrase):
        return "authenticated by the passphrase"
    return f"authenticated by the signature of {authentication.key}"


def demanded(settings: Settings) -> bool:
    """Whether this host's own manifests are authenticated."""
    return bool(settings.backup_gpg_signing_key) or _own_passphrase(settings) is not None


def _own_passphrase(settings: Settings) -> str | None:
    """The passphrase where it is that of backups: with recipients it is a secret key's, elsewhere another."""
    return None if settings.backup_gpg_recipients else settings.passphrase()


def _by_passphrase(settings: Settings) -> Callable[[bytes], Authentication] | None:
    passphrase = _own_passphrase(settings)
    if passphrase is None:
        return None
    return lambda said: ByPassphrase(key=passphrase_fingerprint(passphrase), mac=_mac(passphrase, said))


def _by_signature(settings: Settings) -> Callable[[bytes], Authentication]:
    """By the first of the keys that can sign here, tried out before anything else is done."""
    home, passphrase = keyring(settings), settings.passphrase()
    key = next((each for each in settings.backup_gpg_signing_key if able_to_sign(home, each)), None)
    if key is None:
        raise ConfigurationError(
            f"none of BACKUP_GPG_SIGNING_KEY ({', '.join(settings.backup_gpg_signing_key)}) can sign here:"
            f" the keyring in {home} has no secret key of them that is for signing and has not expired",
            hint=f"gpg --homedir {home} --list-secret-keys shows what there is; set BACKUP_GPG_HOME to the"
            " right keyring, import the key, or have it prolonged (gpg --quick-set-expire)",
        )
    sign(home, key, passphrase, b"")
    return lambda said: BySignature(key=key, signature=sign(home, key, passphrase, said))


def _check_mac(
    settings: Settings, said: ByPassphrase, encryption: Encryption, covered: bytes, where: str
) -> None:
    passphrase = passphrase_of(settings, [said.key])
    if passphrase is None:
        if encryption.mode == "recipients" or encryption.key_fingerprints not in ([], [said.key]):
            raise _forged(f"{where} is authenticated as no backup of ours is: somebody else wrote it")
        raise another_passphrase(settings, said.key)
    if not hmac.compare_digest(_mac(passphrase, covered).encode(), said.mac.encode()):
        raise _forged(f"{where} was changed, or somebody else wrote it: it is not what its MAC was made of")


def _check_signature(settings: Settings, said: BySignature, covered: bytes, where: str) -> None:
    ours, home = settings.backup_gpg_signing_key, keyring(settings)
    if not ours:
        raise ConfigurationError(
            f"{where} is signed by {said.key}, and no key is set here to hold it to",
            hint="set BACKUP_GPG_SIGNING_KEY to the fingerprint that you noted of your own key",
        )
    if signers(home, said.signature, covered) & set(ours):
        return
    if lacking := [key for key in ours if not knows(home, key)]:
        raise ConfigurationError(
            f"the keyring in {home} lacks the public key {' and '.join(lacking)}, so it cannot be told"
            f" whether {where} is signed by it",
            hint=f"gpg --homedir {home} --import KEYFILE, or set BACKUP_GPG_HOME to the right keyring",
        )
    raise _forged(
        f"{where} was changed, or somebody else wrote it: its signature is no good one by any key of"
        " BACKUP_GPG_SIGNING_KEY"
    )


def _forged(said: str) -> IntegrityError:
    return IntegrityError(said, hint="see who can write there; use another copy, or another backup")


def _mac(passphrase: str, said: bytes) -> str:
    return hmac.new(_mac_key(passphrase), said, hashlib.sha256).hexdigest()


@lru_cache(maxsize=64)
def _mac_key(passphrase: str) -> bytes:
    """Costly to derive, like the passphrase's fingerprint, so that guessing stays so."""
    return hashlib.scrypt(passphrase.encode(), salt=_SALT, n=1 << 14, r=8, p=1, dklen=32)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found
