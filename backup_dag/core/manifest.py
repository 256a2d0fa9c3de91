"""What one backup is: its names, and the document that says everything about it but its content.

A manifest is written last and removed first, so it exists exactly when its backup is whole. It is
not encrypted: it holds names, sizes and digests, and never a row, a key or a password.
docs/format.md describes it for readers without this code.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from backup_dag.core.errors import ConfigurationError, IntegrityError
from backup_dag.core.options import may_be_passed_on

SCHEMA_VERSION = 1
Reason = Literal["scheduled", "manual", "late", "pre_restore", "drill"]
ASIDE: frozenset[Reason] = frozenset({"pre_restore", "drill"})
"""Made for a purpose of their own: they stand for no day, and never for the newest good or proven one."""

_ID = re.compile(r"backup_(?P<database>[A-Za-z0-9][A-Za-z0-9_]{0,62})_(?P<stamp>\d{8}_\d{6})", re.ASCII)
_STAMP = "%Y%m%d_%H%M%S"
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
"""Between these every zone can tell the day before and the day after."""
_MOST_SHOWN = 100  # characters of a text that somebody else may have made as long as they liked


@dataclass(frozen=True, order=True)
class BackupId:
    """The stem that all files of a backup share. Sorts by database, then by snapshot time."""

    database: str
    stamp: str

    @classmethod
    def of(cls, database: str, snapshot_time: datetime) -> "BackupId":
        return cls(database, snapshot_time.astimezone(UTC).strftime(_STAMP))

    @classmethod
    def parse(cls, text: str) -> "BackupId | None":
        """None for anything that is not the id of a backup of ours, an impossible date included."""
        match = _ID.fullmatch(text)
        if match is None:
            return None
        found = cls(match["database"], match["stamp"])
        try:
            found.time  # noqa: B018
        except ValueError:
            return None
        return found

    @cached_property
    def time(self) -> datetime:
        """The snapshot's time to the second, in UTC."""
        return datetime.strptime(self.stamp, _STAMP).replace(tzinfo=UTC)

    def local(self, zone: tzinfo) -> datetime:
        """The time there. A name may hold the year 1, or the last second of 9999: such is taken for the first
        or the last that every zone can tell."""
        return min(max(self.time, _FIRST), _LAST).astimezone(zone)

    def __str__(self) -> str:
        return f"backup_{self.database}_{self.stamp}"

    def file(self, ending: str) -> str:
        return f"{self}.{ending}"


_ENDING = re.compile(r"(sql|dump|globals\.sql)\.gz((\.[0-9a-f]{16})?\.gpg)?", re.ASCII)
_GPG = re.compile(r"(\.[0-9a-f]{16})?\.gpg$", re.ASCII)
MANIFEST, CHECKSUM, VERIFICATION, GOING = "json", "sha256", "verify.json", "going.json"
"""The endings of the files beside an artifact."""
_BESIDE = re.compile(r"json|sha256|verify\.json|going\.json|hold-[0-9]+-[0-9]+\.json")


def owner_of(name: str) -> BackupId | None:
    """The backup that a file is part of, or lies beside, by its name. None for a name that we never write."""
    stem, _, ending = name.partition(".")
    return BackupId.parse(stem) if _ENDING.fullmatch(ending) or _BESIDE.fullmatch(ending) else None


def holds_data(name: str) -> bool:
    """Whether a file, by its name, is an artifact or holds globals, and does not lie beside these."""
    return _ENDING.fullmatch(name.partition(".")[2]) is not None


def named_for(name: str, key_fingerprint: str) -> str:
    """What an encrypted file is called once it is re-encrypted: so that both can lie in one folder."""
    return _GPG.sub(f".{key_fingerprint}.gpg", name)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Moment = Annotated[AwareDatetime, Field(ge=_FIRST, le=_LAST)]
Day = Annotated[date, Field(ge=_FIRST.date(), le=_LAST.date())]
"""No larger than what is computed with them can hold: a manifest comes from a bucket."""


class Bytes(_Document):
    """A stream that passed a stage: how many bytes, and their SHA-256."""

    bytes: Count
    sha256: str


class File(Bytes):
    name: str

    @property
    def measured(self) -> Bytes:
        return Bytes(bytes=self.bytes, sha256=self.sha256)


class Globals(File):
    """Roles, and the database's settings. `password_hashes`: whether we were allowed to read them."""

    password_hashes: bool


class Table(_Document):
    """`sha256` is that of the COPY body, in the order in which the rows came."""

    rows: Count
    bytes: Count
    sha256: str


class LargeObjects(_Document):
    count: Count
    sha256: str


_PART = r'(?:"(?:[^"\x00]|"")+"|[a-z_\u0080-\U0010ffff][a-z0-9_\u0080-\U0010ffff]*)'
DumpedName = Annotated[str, Field(pattern=rf"^{_PART}(\.{_PART}){{0,2}}$")]
"""A name as pg_dump quotes it. It comes from a bucket, and goes into SQL as it stands."""


class Content(_Document):
    """The fingerprint of a dump. Tables and sequences are named as the dump quotes them.

    A sequence's value is "last_value is_called". `sha256` is one digest over all the others: equal
    content, equal digest, whenever and wherever it was dumped with the same options.
    """

    tables: dict[DumpedName, Table]
    sequences: dict[DumpedName, str]
    large_objects: LargeObjects
    schema_sha256: str
    sha256: str

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())


class Setting(_Document):
    """ALTER DATABASE (or ALTER ROLE … IN DATABASE) … SET. `value` None: withheld, see globals."""

    role: str | None
    name: str
    value: str | None

    def withheld(self) -> "Setting":
        """Without its value where it is an application's own, which is where secrets are kept."""
        return self.model_copy(update={"value": None}) if "." in self.name else self


Version = Annotated[str, Field(pattern=r"^[0-9]{1,6}([^0-9]|$)")]


def major(version: str) -> int:
    """The first number of a version."""
    return int(re.split(r"\D", version)[0])


class Server(_Document):
    version: Version
    standby: bool
    system_identifier: str | None


class DatabaseFacts(_Document):
    """The database itself, as CREATE DATABASE, ALTER DATABASE and GRANT would say it."""

    dbname: str
    owner: str
    encoding: Annotated[str, Field(pattern=r"^[A-Z0-9_]+$")]
    collate: str
    ctype: str
    locale_provider: str
    locale: str | None
    connection_limit: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
    grants: list[str] | None
    comment: str | None
    settings: list[Setting]
    extensions: dict[str, str]
    tablespaces: list[str] = []
    bytes: Count


class Dumped(Bytes):
    """The plain dump: never on a disk, but its size and digest are known."""

    format: Literal["sql", "custom"]
    client_version: Version
    options: list[str]

    @field_validator("options")
    @classmethod
    def _are_ours(cls, options: list[str]) -> list[str]:
        """They are given to pg_dump again where a restore is proven, so no other may stand there."""
        if strangers := [option for option in options if not may_be_passed_on(option)]:
            raise ValueError(f"pg_dump is never started with {strangers}")
        return options


class Compressed(Bytes):
    algorithm: Literal["gzip"]
    level: Annotated[int, Field(ge=0, le=9)]


class Encryption(_Document):
    """`mode` off, symmetric (`key_fingerprint` of the passphrase) or recipients (those of the keys)."""

    mode: Literal["off", "symmetric", "recipients"]
    cipher: Literal["AES256"] | None
    key_fingerprints: list[str]


class ByPassphrase(_Document):
    """HMAC-SHA256, in hex. `key` is the fingerprint of the passphrase that its key is derived from."""

    mode: Literal["passphrase"] = "passphrase"
    key: str
    mac: str


class BySignature(_Document):
    """A detached OpenPGP signature, armored. `key` is the fingerprint of the key that made it."""

    mode: Literal["signature"] = "signature"
    key: str
    signature: str


Authentication = Annotated[ByPassphrase | BySignature, Field(discriminator="mode")]


class Manifest(_Document):
    """One backup. Times are UTC, sizes bytes, durations seconds; `warnings` are for people.

    `authentication` is over all the rest of it, as core/authenticity.py says; None where it has none.
    """

    schema_version: int
    backup: str
    database: str
    partition_day: Day
    reason: Reason
    snapshot_time: Moment
    started: Moment
    finished: Moment
    seconds: Seconds
    made_by: str
    server: Server
    source: DatabaseFacts
    dump: Dumped
    compressed: Compressed
    encryption: Encryption
    artifact: File
    globals: Globals
    content: Content
    recover: list[str]
    warnings: list[str] = []
    authentication: Authentication | None = None

    @property
    def id(self) -> BackupId:
        return BackupId(self.database, self.backup.removeprefix(f"backup_{self.database}_"))

    @property
    def is_of_a_night(self) -> bool:
        """Whether it counts for its day. What a restore was to undo does not, nor does a drill's."""
        return self.reason not in ASIDE

    @property
    def files(self) -> list[File]:
        """The files that hold the data, without those that describe them."""
        return [self.artifact, self.globals]

    @property
    def names(self) -> list[str]:
        """Every file of the backup in the order of writing: the manifest last. Remove in reverse."""
        ids = self.id
        return [*(file.name for file in self.files), ids.file(CHECKSUM), ids.file(MANIFEST)]

    def is_same_backup(self, other: "Manifest") -> bool:
        """Whether both are of one backup: equal, or all that differs is its encryption with a passphrase
        (another, or the same one on two hosts, each for itself)."""
        return self == other or (
            self.encryption.mode == other.encryption.mode == "symmetric"
            and self._whatever_the_key() == other._whatever_the_key()
        )

    def _whatever_the_key(self) -> dict[str, Any]:
        """What stays as it is when a backup is re-encrypted."""
        said = self.model_dump(exclude={"encryption", "artifact", "recover", "authentication"})
        return {**said, "globals": self.globals.password_hashes}

    def to_json(self) -> str:
        without = None if self.authentication else {"authentication"}
        return self.model_dump_json(indent=2, exclude=without) + "\n"


Level = Literal["checksum", "content", "restore"]
"""How deep a check looks: all bytes; the dump to its last line; a restored database, compared (proof)."""

_DEPTH: dict[Level, int] = {"checksum": 0, "content": 1, "restore": 2}


class Check(_Document):
    """What one verification of one copy found. `faults` is empty where all is well."""

    level: Level
    time: Moment
    seconds: Seconds
    made_by: str
    faults: list[str]

    @property
    def passed(self) -> bool:
        return not self.faults


class Verification(_Document):
    """The last check of each level of the copy that it lies beside."""

    schema_version: int = SCHEMA_VERSION
    backup: str
    checks: dict[Level, Check] = {}

    def verdict(self) -> Check | None:
        """What is to be believed of the copy now: the deepest failed check, unless a later one that looks
        deeper passed; else the deepest check that passed. None where nothing was checked."""
        by_depth = sorted(self.checks.values(), key=lambda check: _DEPTH[check.level], reverse=True)
        failed = [check for check in by_depth if not check.passed and not self._overruled(check)]
        return next(iter(failed or by_depth), None)

    def _overruled(self, failed: Check) -> bool:
        return any(
            check.passed and check.time > failed.time and _DEPTH[check.level] > _DEPTH[failed.level]
            for check in self.checks.values()
        )

    @property
    def proven(self) -> bool:
        """Whether a restore brought back what was promised, and nothing has been found wrong since."""
        verdict = self.verdict()
        return verdict is not None and verdict.passed and verdict.level == "restore"

    def of_the_content(self) -> "Verification":
        """Without the checks that found bytes damaged, for these are replaced by others. What was found good,
        and what a restore found, was found of the content, and stays."""
        kept = {level: each for level, each in self.checks.items() if each.passed or level == "restore"}
        return self.model_copy(update={"checks": kept})

    def with_check(self, check: Check) -> "Verification":
        return self.model_copy(update={"checks": {**self.checks, check.level: check}})

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def read_manifest(text: bytes, name: str) -> Manifest:
    """Parses a manifest, and holds it to the name it was found under.

    Raises:
        IntegrityError: not JSON, a field is missing or malformed, or it is another backup's.
        ConfigurationError: written by a newer version than this one.
    """
    try:
        version = json.loads(text).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ConfigurationError(
                f"{name} has schema version {version}, this program reads up to {SCHEMA_VERSION}",
                hint="read it with the version of backup-dag that wrote it, or a newer one",
            )
        manifest = Manifest.model_validate_json(text)
        backup = BackupId.parse(manifest.backup)
    except (ValueError, ValidationError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"{name} is not a manifest: {next(iter(str(error).splitlines()), '')}",
            hint="compare it with the other store's copy; the artifact beside it can still be read by hand",
        ) from None
    if backup is None or name != backup.file(MANIFEST) or manifest.database != backup.database:
        raise IntegrityError(
            f"{name} describes another backup ({manifest.backup[:_MOST_SHOWN]!r})",
            hint="see who renamed or wrote it",
        )
    names = [file.name for file in manifest.files]
    endings = [each.removeprefix(f"{backup}.") for each in names if each.startswith(f"{backup}.")]
    if len(set(filter(_ENDING.fullmatch, endings))) != len(names):
        said = ", ".join(each[:_MOST_SHOWN] for each in names)
        raise IntegrityError(f"{name} names files that no backup has: {said}", hint="see who wrote it")
    return manifest
