"""Codes that confirm what was planned: they hold for one backup, one target as it stands, and a while.

A code is the minute at which it ends and a MAC over what it is for. The MAC's key lies in BACKUP_DIR,
read by its owner alone, so a code cannot be made by someone who can only send requests.
"""

import base64
import hashlib
import hmac
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from backup_dag.core.errors import DiskError, GuardRefused
from backup_dag.core.private import make_private, refuse_links

MINUTES = 60
"""For how long a code holds."""

_KEY_FILE = ".confirmation-key"
_LENGTH = 10  # bytes of MAC: 80 bits


def code_for(backup_dir: Path, *, what: str, state: str) -> str:
    """A code for doing `what` to a target whose state is `state`, from now on. Raises DiskError."""
    return _code(_key(backup_dir), int(time.time() // 60) + MINUTES, what, state)


def check_code(backup_dir: Path, given: str, *, what: str, state: str) -> None:
    """Raises GuardRefused unless `given` is a code for just this, and has not expired."""
    hint = "launch it with dry_run: true, read the plan, and give the code that stands in it"
    if not given:
        raise GuardRefused("there is no confirmation code", hint=hint)
    ends = _end_of(given)
    if ends is None or not _same(_code(_key(backup_dir), ends, what, state), given):
        raise GuardRefused(
            "the confirmation code is not for this: another backup, target or mode, or the target has changed"
            " since the plan was made",
            hint=f"stop whoever writes to the target; then {hint}",
        )
    if ends < time.time() // 60:
        raise GuardRefused(f"the confirmation code is older than {MINUTES} minutes", hint=hint)


def _code(key: bytes, ends: int, what: str, state: str) -> str:
    said = "\n".join([str(ends), what, state]).encode()
    mac = hmac.new(key, said, hashlib.sha256).digest()[:_LENGTH]
    text = base64.b32encode(ends.to_bytes(5, "big") + mac).decode()
    return "-".join(text[at : at + 8] for at in range(0, len(text), 8))


def _end_of(code: str) -> int | None:
    with suppress(ValueError):
        raw = base64.b32decode(_tidy(code))
        if len(raw) == 5 + _LENGTH:
            return int.from_bytes(raw[:5], "big")
    return None


def _same(code: str, given: str) -> bool:
    return hmac.compare_digest(_tidy(code).encode(), _tidy(given).encode())


def _tidy(code: str) -> str:
    return code.strip().upper().replace("-", "")


def _key(backup_dir: Path) -> bytes:
    """The key, made on first use. Two who make it at once end up with the same one."""
    path = backup_dir / _KEY_FILE
    try:
        make_private(backup_dir)
        refuse_links(path)
        with suppress(FileNotFoundError):
            return path.read_bytes()
        made = path.with_name(f"{_KEY_FILE}-{os.getpid()}")
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(made, path)
        made.unlink()
        return path.read_bytes()
    except OSError as error:
        raise DiskError(
            f"making {path} failed: {error.strerror}", hint="make BACKUP_DIR writable for this user"
        ) from error
