"""Nights of our making: backups without a database, at whatever hour a test wants it to have been."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import SecretStr

from backup_dag.core.manifest import Level, Manifest, Reason, Table
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from tests.cleaning import put
from tests.core.made import manifest

PASSWORD = "pw-that-nobody-may-read"
MIDNIGHT = datetime(2025, 5, 10, tzinfo=UTC)
TWO = timedelta(hours=2)


def at(day: int, hour: float = 2) -> datetime:
    """An hour of a day of May 2025, which is the month of these tests; day 0 is the last of April."""
    return MIDNIGHT + timedelta(days=day - 10, hours=hour)


def made(
    when: datetime,
    *,
    name: str = "shop",
    day: date | None = None,
    reason: Reason = "scheduled",
    dump: int = 1000,
    rows: int = 100,
) -> Manifest:
    """The backup of that hour. It takes no time."""
    of = manifest(name, when)
    table = Table(rows=rows, bytes=2, sha256="cc")
    return of.model_copy(
        update={
            "partition_day": day or when.date(),
            "reason": reason,
            "dump": of.dump.model_copy(update={"bytes": dump}),
            "content": of.content.model_copy(update={"tables": {"public.t": table}}),
        }
    )


def fill(
    stores: Sequence[Store], work: Path, backups: Sequence[Manifest], level: Level | None = "content"
) -> None:
    """Puts backups into each store, with the record of a check that passed."""
    work.mkdir(exist_ok=True)
    for each in backups:
        for store in stores:
            put(store, work, each, level)


def of_shop(settings: Settings, name: str = "shop") -> Settings:
    """A user with one database, which nobody connects to."""
    url = f"postgresql://{name}:{PASSWORD}@127.0.0.1:1/{name}"
    return settings.model_copy(
        update={
            "database_url": SecretStr(url),
            "backup_config": Path("/dev/null"),
            "backup_start_date": date(2025, 1, 1),
        }
    )
