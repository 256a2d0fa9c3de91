"""Manifests authenticated as docs/format.md says it, without the program; and keyrings to sign with."""

import hashlib
import hmac
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import KEY


def scrypt(passphrase: str, purpose: str, length: int) -> bytes:
    return hashlib.scrypt(passphrase.encode(), salt=purpose.encode(), n=16384, r=8, p=1, dklen=length)


def covered(document: dict[str, Any]) -> bytes:
    rest = {name: value for name, value in document.items() if name != "authentication"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")


def with_mac(document: dict[str, Any], passphrase: str = KEY) -> dict[str, Any]:
    """The document as someone would write it who has the passphrase."""
    key = scrypt(passphrase, "backup-dag manifest authentication 1", 32)
    mac = hmac.new(key, covered(document), "sha256").hexdigest()
    fingerprint = scrypt(passphrase, "backup-dag passphrase fingerprint 1", 8).hex()
    return {**document, "authentication": {"mode": "passphrase", "key": fingerprint, "mac": mac}}


@contextmanager
def keyring() -> Iterator[Path]:
    """A new gpg home, its path short enough for an agent's socket; the agent ends with it."""
    with tempfile.TemporaryDirectory(prefix="bd-gpg-") as folder:
        yield Path(folder)
        end_agent(Path(folder))


def gpg(home: Path, *words: str, data: bytes = b"") -> bytes:
    program: list[str | os.PathLike[str]] = ["gpg", "--homedir", home, "--batch", "--yes"]
    program += ["--pinentry-mode", "loopback", *words]
    return subprocess.run(program, input=data, capture_output=True, check=True).stdout


def new_key(
    home: Path,
    name: str,
    *,
    algorithm: str = "ed25519",
    use: str = "sign",
    expires: str = "never",
    passphrase: str = "",
    at: str | None = None,
) -> str:
    """Makes a key pair, and ends the agent; its fingerprint."""
    clock = ["--faked-system-time", at] if at else []
    who = f"{name} <{name}@example.org>"
    gpg(home, *clock, "--passphrase", passphrase, "--quick-generate-key", who, algorithm, use, expires)
    listed = gpg(home, "--with-colons", "--list-keys", f"{name}@example.org").decode()
    end_agent(home)
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


def public_keys(home: Path, into: Path) -> Path:
    """Brings a keyring's public keys into another."""
    gpg(into, "--import", data=gpg(home, "--export"))
    end_agent(into)
    return into


def end_agent(home: Path) -> None:
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, capture_output=True)


def agents(home: Path) -> bool:
    """Whether an agent is running for that keyring."""
    asked = ["gpg-connect-agent", f"--homedir={home}", "--no-autostart", "GETINFO pid", "/bye"]
    return b"D " in subprocess.run(asked, capture_output=True, check=False).stdout


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest's file, changed as someone would who has the passphrase."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(with_mac(document)))
