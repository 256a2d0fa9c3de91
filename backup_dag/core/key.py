"""The key that encrypts, the key that opens, and how either is told from others without being shown."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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
        home = keyring(settings)
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
    """The key that opens a backup, whatever new ones are encrypted with: among the passphrases that are set,
    the old ones too, the one whose fingerprint the manifest names. None is ever tried out.

    Raises:
        ConfigurationError: none of this host's passphrases is the one it was made with, or there is none.
    """
    told_in = settings.backup_dir
    if made_with.mode == "off":
        return Key("off")
    if made_with.mode == "recipients":
        unlocks, keys = settings.passphrase(), tuple(made_with.key_fingerprints)
        return Key("recipients", unlocks, keyring(settings), keys, told_in)
    passphrase = passphrase_of(settings, made_with.key_fingerprints)
    if passphrase is None:
        raise another_passphrase(settings, ", ".join(made_with.key_fingerprints) or "none")
    return Key("symmetric", passphrase, None, tuple(made_with.key_fingerprints), told_in)


def passphrase_of(settings: Settings, fingerprints: Sequence[str]) -> str | None:
    """The passphrase that is set here, as the current one or an old one, and has this one fingerprint."""
    known = (settings.passphrase(), *settings.old_passphrases())
    return next((each for each in known if each and [passphrase_fingerprint(each)] == [*fingerprints]), None)


@dataclass(frozen=True)
class Fingerprints:
    """Those of the passphrases that are set here: of today's (None: none is), and of the old ones."""

    current: str | None
    old: tuple[str, ...]

    def what_is(self, fingerprint: str) -> Literal["current", "old", "unknown"]:
        if fingerprint == self.current:
            return "current"
        return "old" if fingerprint in self.old else "unknown"

    def what_opens(self, made_with: Encryption) -> Literal["current", "old", "unknown", "public", "off"]:
        """Which key opens what was made so; `public`: a secret key does."""
        if made_with.mode == "symmetric":
            return self.what_is("".join(made_with.key_fingerprints))
        return "public" if made_with.mode == "recipients" else "off"


def known_fingerprints(settings: Settings) -> Fingerprints:
    """The fingerprints of the passphrases that are set here. Raises ConfigurationError where one cannot be
    used."""
    passphrase = settings.passphrase()
    current = passphrase_fingerprint(passphrase) if passphrase else None
    return Fingerprints(current, tuple(map(passphrase_fingerprint, settings.old_passphrases())))


def another_passphrase(settings: Settings, theirs: str) -> ConfigurationError:
    """That a backup was made under a passphrase of another fingerprint than those here, or none is here."""
    ours, old = settings.passphrase(), settings.old_passphrases()
    have = f"the one set here has {passphrase_fingerprint(ours)}" if ours else "none is set here"
    if old:
        have += f", the old ones have {', '.join(map(passphrase_fingerprint, old))}"
    return ConfigurationError(
        f"this backup's passphrase has fingerprint {theirs}, {have}",
        hint="where the passphrase was changed on purpose, give the one of that fingerprint in"
        " BACKUP_ENCRYPTION_OLD_KEY, or in a file (BACKUP_ENCRYPTION_OLD_KEYS_FILE); else set"
        " BACKUP_ENCRYPTION_KEY to it: it was in use when it was made, or last re-encrypted (rekey)",
    )


def why_unopened(settings: Settings, copies: Sequence[Encryption]) -> ConfigurationError | None:
    """Why no passphrase that is set here opens any copy of a backup that is under one. None where one does,
    and where none is set: a machine that is to open none needs none."""
    try:
        known = known_fingerprints(settings)
    except ConfigurationError as error:
        return error
    if known == Fingerprints(None, ()) or any(known.what_opens(each) != "unknown" for each in copies):
        return None
    theirs = dict.fromkeys(print_ for each in copies for print_ in each.key_fingerprints)
    return another_passphrase(settings, ", ".join(theirs)) if copies else None


@lru_cache(maxsize=64)
def passphrase_fingerprint(passphrase: str) -> str:
    """16 hex digits that tell passphrases apart. scrypt (RFC 7914), so that guessing stays costly."""
    salt = b"backup-dag passphrase fingerprint 1"
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=8).hex()


def keyring(settings: Settings) -> Path:
    """The gpg home with the keys that are named in the settings."""
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
