"""Detached OpenPGP signatures by the keys of a keyring: made, and checked."""

import tempfile
from pathlib import Path

from backup_dag.core.errors import ConfigurationError
from backup_dag.core.gpg import STATUS, Gpg, agent_ended, gpg_at, said_by

_SIGNING = ["--pinentry-mode", "loopback"]
_CHECKING = ["--trust-model", "always", "--no-auto-key-retrieve", "--no-autostart"]


def able_to_sign(home: Path, fingerprint: str) -> bool:
    """Whether the keyring has the secret key, and it may sign: not expired, not revoked, of that kind."""
    with gpg_at(home, []) as gpg, agent_ended(home):
        keys = gpg.list_keys(secret=True, keys=[fingerprint])
    return any("S" in key["cap"] for key in keys)


def knows(home: Path, fingerprint: str) -> bool:
    """Whether the keyring has the public key."""
    with gpg_at(home, []) as gpg:
        return bool(gpg.list_keys(keys=[fingerprint]))


def sign(home: Path, fingerprint: str, passphrase: str | None, data: bytes) -> str:
    """An armored signature of the data. `passphrase` unlocks the secret key, where it is locked.

    Raises ConfigurationError where gpg does not make one.
    """
    with gpg_at(home, _SIGNING) as gpg, agent_ended(home):
        made = gpg.sign(
            data,
            passphrase=passphrase,
            clearsign=False,
            detach=True,
            extra_args=["--local-user", fingerprint],
        )
    if made.fingerprint and made.returncode == 0:
        return str(made.data, "ascii")
    said = said_by(made)
    raise ConfigurationError(
        f"signing with the key {fingerprint} in {home} failed: {said}",
        hint="its passphrase, if it has one, is BACKUP_ENCRYPTION_KEY;"
        f" gpg --homedir {home} --list-secret-keys shows what the key is for, and until when",
    )


def signers(home: Path, signature: str, data: bytes) -> frozenset[str]:
    """Whose good signature of the data it is: the fingerprint of the key, and that of its primary key.

    None at all where it is not good, or the keyring does not have the public key. One that was made before
    its key expired stays good; one by a key that was revoked does not.
    """
    with tempfile.NamedTemporaryFile("w", prefix="bd-signature-", suffix=".asc") as file:
        file.write(signature)
        file.flush()
        with gpg_at(home, _CHECKING) as gpg:
            return frozenset(_valid(gpg, file.name, data))


def _valid(gpg: Gpg, path: str, data: bytes) -> set[str]:
    found = gpg.verify_data(path, data)
    lines = [line.removeprefix(STATUS).split() for line in found.stderr.splitlines() if STATUS in line[:9]]
    if any(line[0] in ("BADSIG", "ERRSIG", "REVKEYSIG", "EXPSIG") for line in lines if line):
        return set()
    valid = [line for line in lines if line and line[0] == "VALIDSIG"]
    return {fingerprint for line in valid for fingerprint in (line[1], line[-1])}
