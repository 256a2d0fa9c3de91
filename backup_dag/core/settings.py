"""The environment, or a `.env` file, as typed and frozen settings.

Names are those that users of such tools know; ours begin with BACKUP_. Secrets are `SecretStr`:
they show as stars in every repr, log and error. `.env.example` documents each of these.
"""

import os
import re
import stat
from datetime import date, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backup_dag.core import stall
from backup_dag.core.errors import ConfigurationError

_LENGTH_OF_TIME = re.compile(r"(\d+(?:\.\d+)?) ?(min|h|d)", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}", re.ASCII)
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
_LONGEST = timedelta(days=3650)
_PASSPHRASES = {
    "BACKUP_ENCRYPTION_KEY": "BACKUP_ENCRYPTION_KEY_FILE",
    "BACKUP_ENCRYPTION_OLD_KEY": "BACKUP_ENCRYPTION_OLD_KEYS_FILE",
}
_UTF8 = "utf-8-sig"  # Windows' editors put a mark before the first line
_LARGEST, _MOST_REPLACED = 1 << 18, 32  # bytes of a file of settings; how often ${…} may stand in it
_MOST_SHOWN = 100  # characters
_UNITS = {"min": "minutes", "h": "hours", "d": "days"}


def _length_of_time(value: Any) -> Any:
    if isinstance(value, str):
        match = _LENGTH_OF_TIME.fullmatch(value.strip())
        if match is None:
            raise ValueError("not a length of time such as 90min, 36h or 2d")
        try:
            return timedelta(**{_UNITS[match[2]]: float(match[1])})
        except OverflowError:
            raise ValueError("far too long") from None
    return value


def _time_of_day(value: Any) -> Any:
    if isinstance(value, str):
        match = _TIME_OF_DAY.fullmatch(value.strip())
        if match is None:
            raise ValueError("not a time of day such as 02:00")
        return time(int(match[1]), int(match[2]))
    return value


def _hours(value: Any) -> Any:
    if isinstance(value, str):
        ends = value.split("-")
        if len(ends) != 2:
            raise ValueError("not hours such as 22:00-06:00")
        return tuple(_time_of_day(end) for end in ends)
    return value


Format = Literal["sql", "custom"]
CompressionLevel = Annotated[int, Field(ge=0, le=9)]
LengthOfTime = Annotated[timedelta, BeforeValidator(_length_of_time)]
TimeOfDay = Annotated[time, BeforeValidator(_time_of_day)]
Hours = Annotated[tuple[time, time], NoDecode, BeforeValidator(_hours)]
"""From one time of day to another, which may be the next day's."""


class Settings(BaseSettings):
    """Every setting but those of single databases, which `databases.py` reads."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr | None = None
    backup_config: Path = Path("backup.toml")
    backup_dir: Path = Path("backups")
    pg_bin_dir: Annotated[tuple[Path, ...], NoDecode] = ()

    backup_encryption: Literal["on", "off"] = "on"
    backup_encryption_key: SecretStr | None = None
    backup_encryption_key_file: Path | None = None
    backup_encryption_old_key: SecretStr | None = None
    backup_encryption_old_keys_file: Path | None = None
    backup_gpg_recipients: Annotated[tuple[str, ...], NoDecode] = ()
    backup_gpg_home: Path | None = None
    backup_gpg_signing_key: Annotated[tuple[str, ...], NoDecode] = ()
    backup_accept_unauthenticated: Literal["on", "off"] = "off"

    backup_format: Format = "sql"
    backup_compression_level: CompressionLevel = 2
    backup_timezone: str = "UTC"
    backup_start_date: date = date(2026, 1, 1)
    backup_owner: str = "team:backup"
    backup_stall_seconds: Annotated[int, Field(ge=2, le=86_400)] = 900

    backup_restore_targets: Annotated[tuple[str, ...], NoDecode] = ()
    backup_restore_jobs: Annotated[int, Field(ge=1, le=64)] = 2
    backup_safety_days: Annotated[int, Field(ge=1, le=3650)] = 30

    backup_schedules: Literal["on", "off"] = "on"
    backup_time: TimeOfDay = time(2, 0)
    backup_verify_time: TimeOfDay = time(3, 0)
    backup_late_grace: LengthOfTime = timedelta(hours=36)
    backup_missed_attempts: Annotated[int, Field(ge=0, le=20)] = 3
    backup_rpo: LengthOfTime = timedelta(hours=24)
    backup_rto: LengthOfTime = timedelta(hours=2)
    backup_drill: Literal["off", "monthly", "weekly", "nightly"] = "monthly"
    backup_drill_time: TimeOfDay = time(4, 0)
    backup_drill_unproven: Literal["on", "off"] = "off"
    backup_quiet_hours: Hours = (time(4, 0), time(7, 0))
    backup_drill_checks: Path = Path("drills")
    backup_scratch_url: SecretStr | None = None
    backup_scratch_dir: Path | None = None
    backup_drill_unconfined: Literal["on", "off"] = "off"
    backup_shrink_percent: Annotated[int, Field(ge=1, le=100)] = 50
    backup_growth_percent: Annotated[int, Field(ge=1, le=100_000)] = 200

    backup_retention_days: Annotated[int, Field(ge=1, le=36500)] = 30
    backup_keep_daily: Annotated[int, Field(ge=0, le=36500)] = 7
    backup_keep_weekly: Annotated[int, Field(ge=0, le=5200)] = 4
    backup_keep_monthly: Annotated[int, Field(ge=0, le=1200)] = 12
    backup_keep_yearly: Annotated[int, Field(ge=0, le=100)] = 0
    backup_local_retention_days: Annotated[int, Field(ge=1, le=36500)] | None = None
    backup_cleanup_most_percent: Annotated[int, Field(ge=1, le=100)] = 25

    backup_notify_email: Annotated[tuple[str, ...], NoDecode] = ()
    backup_notify_urls: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    backup_smtp_host: str | None = None
    backup_smtp_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    backup_smtp_security: Literal["starttls", "ssl", "none"] = "starttls"
    backup_smtp_user: str | None = None
    backup_smtp_password: SecretStr | None = None
    backup_smtp_from: str | None = None
    backup_heartbeat_url: SecretStr | None = None
    backup_digest: Literal["off", "daily", "weekly"] = "off"
    backup_dagster_url: str = "http://127.0.0.1:3000"

    aws_s3_bucket: str | None = None
    aws_default_region: str | None = None
    aws_endpoint_url_s3: str | None = None
    backup_s3_prefix: str = ""
    backup_s3_retries: Annotated[int, Field(ge=0, le=20)] = 3
    backup_s3_retry_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    backup_s3_sse: Literal["AES256", "aws:kms"] | None = None
    backup_s3_sse_kms_key_id: str | None = None
    backup_s3_storage_class: str | None = None
    backup_s3_object_lock_mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = None
    backup_s3_object_lock_days: Annotated[int, Field(ge=1, le=36500)] | None = None

    @field_validator(
        *("backup_gpg_recipients", "backup_gpg_signing_key", "backup_restore_targets"),
        *("backup_notify_email", "backup_notify_urls"),
        mode="before",
    )
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("backup_gpg_signing_key")
    @classmethod
    def _are_fingerprints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Whole ones: a name or a short id could be any key's that somebody brought into the keyring."""
        found = tuple(each.replace(" ", "").removeprefix("0x").upper() for each in value)
        if not all(_FINGERPRINT.fullmatch(each) for each in found):
            raise ValueError("not whole fingerprints (40 hexadecimal digits) with commas between them")
        return found

    @field_validator("pg_bin_dir", mode="before")
    @classmethod
    def _split_at_colons(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator(
        *("backup_dir", "backup_config", "backup_encryption_key_file", "backup_encryption_old_keys_file"),
        *("backup_gpg_home", "backup_drill_checks", "backup_scratch_dir"),
    )
    @classmethod
    def _of_this_user(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @field_validator("backup_owner")
    @classmethod
    def _known_to_dagster(cls, value: str) -> str:
        if not re.fullmatch(r"team:[A-Za-z0-9_]+|[^@\s]+@[^@\s]+\.[^@\s]+", value):
            raise ValueError("not an e-mail address, nor team: and a name")
        return value

    @field_validator("aws_endpoint_url_s3")
    @classmethod
    def _without_secrets(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError("must not hold a user or password; see AWS_ACCESS_KEY_ID")
        return value

    @field_validator("backup_rpo", "backup_late_grace")
    @classmethod
    def _of_a_length_that_means_something(cls, value: timedelta) -> timedelta:
        """With none, every backup would be too old at once; and a calendar's dates end somewhere."""
        if not timedelta() < value <= _LONGEST:
            raise ValueError(f"must be more than 0h, and at most {_LONGEST.days}d")
        return value

    @field_validator("backup_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("not a time zone name such as Europe/Berlin") from error
        return value

    @field_validator("backup_s3_prefix")
    @classmethod
    def _ends_in_a_slash(cls, value: str) -> str:
        prefix = value.strip("/")
        return f"{prefix}/" if prefix else ""

    @model_validator(mode="after")
    def _go_together(self) -> "Settings":
        if (self.backup_s3_object_lock_mode is None) != (self.backup_s3_object_lock_days is None):
            raise ValueError(
                "BACKUP_S3_OBJECT_LOCK_MODE and BACKUP_S3_OBJECT_LOCK_DAYS are set together or not at all"
            )
        if self.backup_s3_sse_kms_key_id and self.backup_s3_sse != "aws:kms":
            raise ValueError("BACKUP_S3_SSE_KMS_KEY_ID needs BACKUP_S3_SSE=aws:kms")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """Where days begin and end: partition days are days in this zone."""
        return ZoneInfo(self.backup_timezone)

    def passphrase(self) -> str | None:
        """The symmetric passphrase, from BACKUP_ENCRYPTION_KEY or the first line of …_KEY_FILE.

        Raises:
            ConfigurationError: both are set, the file cannot be read, its first line is empty, or gpg
                cannot take what it holds.
        """
        if self.backup_encryption_key_file is None:
            return (
                _usable(self.backup_encryption_key.get_secret_value()) if self.backup_encryption_key else None
            )
        if self.backup_encryption_key is not None:
            raise ConfigurationError(
                "BACKUP_ENCRYPTION_KEY and BACKUP_ENCRYPTION_KEY_FILE are both set",
                hint="keep one of them; two keys that may differ are no key",
            )
        return _first_line(self.backup_encryption_key_file)

    def old_passphrases(self) -> tuple[str, ...]:
        """What earlier backups may be under: BACKUP_ENCRYPTION_OLD_KEY, then the lines of …_OLD_KEYS_FILE.

        They open what they made, and nothing new is ever made with them.

        Raises:
            ConfigurationError: the file cannot be read, or gpg cannot take what is given.
        """
        one, file = self.backup_encryption_old_key, self.backup_encryption_old_keys_file
        found = [_usable(one.get_secret_value(), "BACKUP_ENCRYPTION_OLD_KEY")] if one else []
        found += _every_line(file) if file else []
        return tuple(dict.fromkeys(found))


def load(env_file: Path | None = Path(".env")) -> Settings:
    """Settings from the environment, else from `env_file`. How long this process waits for what does not move
    is set by it, for all that follows.

    Names beginning with AWS_ that stand in the file alone are put into this process's environment:
    boto3 knows more of them than we do, and reads them there.

    Raises:
        ConfigurationError: names each setting that is malformed, never its value.
    """
    values = _file_values(env_file)
    for name, in_a_file in _PASSPHRASES.items():
        if (values.get(name) or "") != (_as_written(env_file, name) or ""):
            raise ConfigurationError(
                f"{name} in {env_file} holds ${{…}}, which is replaced where the file is read",
                hint=f"put the passphrase into a file, named in {in_a_file}, or choose another",
            )
    for name, value in values.items():
        if name.startswith("AWS_") and value:
            os.environ.setdefault(name, value)
    try:
        settings = Settings(_env_file=env_file, _env_file_encoding=_UTF8)  # type: ignore[call-arg]
    except ValidationError as error:
        faults = "; ".join(
            ": ".join([*(str(place).upper() for place in fault["loc"][:1]), fault["msg"]])
            for fault in error.errors()
        )
        raise ConfigurationError(
            f"reading the settings failed: {faults}",
            hint="mend it in the environment or in .env; .env.example describes each setting",
        ) from None
    stall.allow(settings.backup_stall_seconds)
    return settings


def environment_value(name: str, env_file: Path | None = Path(".env")) -> str | None:
    """One variable by name, from the environment, else from `env_file`. None where it is empty."""
    return os.environ.get(name) or _file_values(env_file).get(name) or None


def _file_values(env_file: Path | None) -> dict[str, str | None]:
    try:
        text = _bounded(env_file, str(env_file)) if env_file and env_file.exists() else b""
        if text.count(b"${") > _MOST_REPLACED:  # of each the end is looked for, in all that follows
            raise ConfigurationError(
                f"{env_file} holds ${{ more than {_MOST_REPLACED} times", hint="write the values themselves"
            )
        values = dotenv_values(env_file, encoding=_UTF8) if env_file else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"reading {env_file} failed: {error}", hint="make it readable UTF-8"
        ) from None
    if holding := [name for name, value in values.items() if "\0" in f"{name}{value}"]:
        raise ConfigurationError(
            f"{env_file} holds a NUL, in {holding[0][:_MOST_SHOWN]!r}",
            hint="write it anew as a text file: no setting can hold that",
        )
    return values


def _bounded(path: Path, called: str) -> bytes:
    """A file of settings: not read without an end, nor waited for. Raises ConfigurationError, OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ConfigurationError(f"{called} is no regular file", hint="write it to one, with mode 0600")
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ConfigurationError(
            f"{called} has more than {_LARGEST:,} bytes", hint="see whether it is the right file"
        )
    return text


def _as_written(env_file: Path | None, name: str) -> str | None:
    return dotenv_values(env_file, interpolate=False, encoding=_UTF8).get(name) if env_file else None


def _first_line(path: Path) -> str:
    try:
        line = _bounded(path, f"BACKUP_ENCRYPTION_KEY_FILE ({path})").decode().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"reading the passphrase from BACKUP_ENCRYPTION_KEY_FILE ({path}) failed: {error}",
            hint="give the path of a file that this user may read, the passphrase on its first line",
        ) from None
    if line.endswith("\r"):
        raise ConfigurationError(
            f"the first line of BACKUP_ENCRYPTION_KEY_FILE ({path}) ends in a carriage return, as on Windows",
            hint="take it away (sed -i 's/\\r$//' FILE): gpg would take it for a part of the passphrase",
        )
    if not line:
        raise ConfigurationError(
            f"the first line of BACKUP_ENCRYPTION_KEY_FILE ({path}) is empty",
            hint="write the passphrase on the first line",
        )
    return _usable(line)


def _every_line(path: Path) -> list[str]:
    """The passphrases in a file, one a line. Empty lines are passed over."""
    name = "BACKUP_ENCRYPTION_OLD_KEYS_FILE"
    try:
        lines = _bounded(path, f"{name} ({path})").decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"reading the old passphrases from {name} ({path}) failed: {error}",
            hint="give the path of a file that this user may read, with one passphrase on each line",
        ) from None
    if any(line.endswith("\r") for line in lines):
        raise ConfigurationError(
            f"lines of {name} ({path}) end in a carriage return, as on Windows",
            hint="take it away (sed -i 's/\\r$//' FILE): gpg would take it for a part of the passphrase",
        )
    return [_usable(line, name) for line in lines if line]


def _usable(passphrase: str, where: str = "BACKUP_ENCRYPTION_KEY or its file") -> str:
    if passphrase.startswith("PUT-THE-"):
        raise ConfigurationError(
            "the passphrase is still the example's, which everyone knows",
            hint="make one with openssl rand -base64 32, and keep a copy of it away from this machine",
        )
    if any(character in passphrase for character in "\r\n\0"):
        raise ConfigurationError(
            f"the passphrase in {where} holds a line break or a NUL",
            hint="gpg cannot take that; choose one without (openssl rand -base64 32)",
        )
    if not _is_utf8(passphrase):
        raise ConfigurationError(
            f"the passphrase in {where} is not UTF-8",
            hint="choose one of letters and digits (openssl rand -base64 32)",
        )
    return passphrase


def _is_utf8(text: str) -> bool:
    """Whether the environment's bytes were text: those that are not come as half characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
