"""The key that encrypts, the key that opens, and how either is told from others without being shown."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from backup_dag.core.errors import ConfigurationError
from backup_dag.core.gpg import gpg_at
from backup_dag.core.manifest import Encryption
from backup_dag.core.settings import Settings

CIPHER: Literal["AES256"] = "AES256"
_MODES = Literal["off", "symmetric", "recipients"]


@dataclass(frozen=True)
class Key:
    """What encrypts and decrypts. Shown only by its mode and fingerprints.

    `home` is the keyring's directory where there is one; `passphrase` is the symmetric key, or, with
    recipients, what unlocks the secret key. `told_in` is the BACKUP_DIR whose audit log hears of each use
    of a key that opens.
    """

    mode: _MODES
    passphrase: str | None = field(default=None, repr=False)
    home: Path | None = None
    fingerprints: tuple[str, ...] = ()
    told_in: Path | None = field(default=None, repr=False, compare=False)

    def described(self) -> Encryption:
        cipher = None if self.mode == "off" else CIPHER
        return Encryption(mode=self.mode, cipher=cipher, key_fingerprints=list(self.fingerprints))


def encryption_key(settings: Settings) -> Key:
    """The key that new backups are encrypted with. Raises ConfigurationError where there is none, or two."""
    passphrase = settings.passphrase()
    if settings.backup_encryption == "off":
        return Key("off")
    if settings.backup_gpg_recipients:
        home = _keyring(settings)
        fingerprints = tuple(_public_key(home, recipient) for recipient in settings.backup_gpg_recipients)
        return Key("recipients", passphrase, home, fingerprints)
    if passphrase is None:
        raise ConfigurationError(
            "there is no key to encrypt with: BACKUP_ENCRYPTION_KEY is not set",
            hint="set it (openssl rand -base64 32 makes a good one) and keep a copy away from this host;"
            " or set BACKUP_ENCRYPTION_KEY_FILE, or BACKUP_GPG_RECIPIENTS",
        )
    return Key("symmetric", passphrase, fingerprints=(passphrase_fingerprint(passphrase),))


def decryption_key(settings: Settings, made_with: Encryption) -> Key:
    """The key that opens a backup, whatever new ones are encrypted with.

    Raises:
        ConfigurationError: this host's passphrase is not the one it was made with, or there is none.
    """
    passphrase, told_in = settings.passphrase(), settings.backup_dir
    if made_with.mode == "off":
        return Key("off")
    if made_with.mode == "recipients":
        return Key("recipients", passphrase, _keyring(settings), tuple(made_with.key_fingerprints), told_in)
    ours = passphrase_fingerprint(passphrase) if passphrase else None
    if [ours] != made_with.key_fingerprints:
        have = f"the one set here has {ours}" if ours else "none is set here"
        theirs = ", ".join(made_with.key_fingerprints) or "none"
        raise ConfigurationError(
            f"this backup's passphrase has fingerprint {theirs}, {have}",
            hint="set BACKUP_ENCRYPTION_KEY to the passphrase that was in use when it was made",
        )
    return Key("symmetric", passphrase, None, tuple(made_with.key_fingerprints), told_in)


def passphrase_fingerprint(passphrase: str) -> str:
    """16 hex digits that tell passphrases apart. scrypt (RFC 7914), so that guessing stays costly."""
    salt = b"backup-dag passphrase fingerprint 1"
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=8).hex()


def _keyring(settings: Settings) -> Path:
    return settings.backup_gpg_home or Path(os.environ.get("GNUPGHOME", "~/.gnupg")).expanduser()


def _public_key(home: Path, recipient: str) -> str:
    """The fingerprint of a recipient's public key."""
    with gpg_at(home, []) as gpg:
        keys = gpg.list_keys(keys=[recipient])
    if not keys:
        raise ConfigurationError(
            f"gpg knows no public key for the recipient {recipient!r} in {home}",
            hint=f"gpg --homedir {home} --import KEYFILE, or set BACKUP_GPG_HOME to the right keyring",
        )
    able = [key for key in keys if "E" in key["cap"]]
    if len(able) > 1:
        known = ", ".join(str(key["fingerprint"]) for key in able)
        raise ConfigurationError(
            f"the recipient {recipient!r} could be any of several keys: {known}",
            hint="give the fingerprint of the right one in BACKUP_GPG_RECIPIENTS",
        )
    if not able:
        raise ConfigurationError(
            f"the key of the recipient {recipient!r} cannot encrypt: it has no such part, or has expired",
            hint=f"gpg --homedir {home} --list-keys shows what each key is for, and until when",
        )
    return str(able[0]["fingerprint"])
