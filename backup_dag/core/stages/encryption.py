"""OpenPGP by gpg, both ways: AES256 under a passphrase, or to public keys; or, if told so, nothing.

gpg is asked for as little as it can be: no second compression, and no agent. gpg starts an agent for
symmetric work only to ask it how often to iterate the passphrase; we say how often, so none is
started, none outlives us, and no socket limits the length of a path.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from backup_dag.core.errors import BackupDagError, ConfigurationError, IntegrityError
from backup_dag.core.gpg import Gpg, GpgFailed, Source, agent_ended, through
from backup_dag.core.key import CIPHER, Key
from backup_dag.core.stream import Writer
from backup_dag.core.work import private_folder

_AES256 = ["--cipher-algo", CIPHER, "--compress-algo", "none"]
S2K_COUNT = "65011712"
"""How many bytes are hashed for a key out of a passphrase: the most that OpenPGP allows, 0.1 s of a core."""

_ITERATED = ["--s2k-cipher-algo", CIPHER, "--s2k-digest-algo", "SHA512", "--s2k-count", S2K_COUNT]
_ALONE = ["--no-options", "--no-keyring", "--no-autostart", *_ITERATED]


@contextmanager
def encrypting(sink: Writer, key: Key, work: Path) -> Iterator[Writer]:
    """A writer whose bytes reach `sink` encrypted. Leaving the block well means that gpg exited 0.

    Raises:
        BackupDagError: gpg failed; what it said is in the message. ProgramStalled: it stood still.
        Whatever the sink raised.
    """

    def encrypt(gpg: Gpg, source: Source) -> Any:
        passphrase = key.passphrase if key.mode == "symmetric" else None
        recipients = list(key.fingerprints) if key.mode == "recipients" else None
        return gpg.encrypt_file(
            source,
            recipients,
            symmetric=passphrase is not None,
            passphrase=passphrase,
            armor=False,
            always_trust=True,
            extra_args=_AES256,
        )

    if key.mode == "off":
        yield sink
        return
    try:
        with through(sink, _home(key, work), _options(key), encrypt, doing="encrypting") as writer:
            yield writer
    except GpgFailed as failed:
        raise BackupDagError(
            f"encrypting failed: {failed}", hint="see what gpg says; was it killed? is the key sound?"
        ) from failed


@contextmanager
def decrypting(sink: Writer, key: Key, work: Path) -> Iterator[Writer]:
    """A writer that takes ciphertext and pushes plain bytes to `sink`.

    gpg hands on the plain bytes of a tampered message before it says so: nothing that reached `sink`
    may be believed before the block is left.

    Raises:
        ConfigurationError: this host lacks the secret key.
        IntegrityError: gpg could not decrypt, or found the message changed. ProgramStalled: it stood still.
        BackupDagError: it was killed, which says nothing of the message.
        Whatever the sink raised.
    """

    def decrypt(gpg: Gpg, source: Source) -> Any:
        return gpg.decrypt_file(source, passphrase=key.passphrase, always_trust=True)

    if key.mode == "off":
        yield sink
        return
    try:
        with (
            agent_ended(key.home) if key.home else nullcontext(),
            through(sink, _home(key, work), _options(key), decrypt, doing="decrypting") as writer,
        ):
            yield writer
    except GpgFailed as failed:
        if "No secret key" in str(failed):
            raise ConfigurationError(
                f"this host has no secret key that opens the backup, made for {', '.join(key.fingerprints)}",
                hint="do this where the secret key is, with BACKUP_GPG_HOME set to its keyring",
            ) from failed
        if failed.killed:
            raise BackupDagError(
                f"decrypting failed: gpg was killed: {failed}",
                hint="see who killed it (out of memory? journalctl -k), then try again",
            ) from failed
        raise IntegrityError(
            f"decrypting failed: {failed}", hint="use another copy of this backup, or another backup"
        ) from failed


def _home(key: Key, work: Path) -> Path:
    """The keyring's home; a private and empty one where no keyring is needed."""
    return key.home or private_folder(work / "gnupg")


def _options(key: Key) -> list[str]:
    return _ALONE if key.mode == "symmetric" else []
