"""A stored backup into a database: by psql as it streams, or by pg_restore from a private file.

Each reading of the artifact is held to the manifest once more: what lies in a bucket may change.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from backup_dag.core.address import Address
from backup_dag.core.clients import Clients, find_restricting
from backup_dag.core.history import Stopwatch
from backup_dag.core.manifest import Manifest, major
from backup_dag.core.options import selects_schemas
from backup_dag.core.process import Child
from backup_dag.core.psql import WithoutRestriction, loading
from backup_dag.core.reading import Source, dump_text, read_back
from backup_dag.core.restoring.noted import Noted
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import compare
from backup_dag.core.stages.dump import load_archive, read_archive
from backup_dag.core.stream import Hashing, Meter, Observer, Writer
from backup_dag.core.work import reading_directory, unnamed_file, work_directory

_WORK_MEMORY = 256  # MB of maintenance_work_mem for the loading sessions

_MOST_LOOKED_AT = 16 << 20  # bytes of a dump in which its schemas must have come
_COMPLETE = b"\n-- PostgreSQL database dump complete\n"
_STEPS = ("decrypt", "load", "index")
_MAKING_PUBLIC = " SCHEMA - public "  # as an archive's list has it


def loading_parameters(server_major: int, *, live: bool = False) -> dict[str, str]:
    """For the loading sessions alone. A crash while loading costs nothing where nobody uses it yet: unless
    what they commit is `live`, they do not wait for the disk. Whatever timeouts a role or the server has, a
    load may take longer."""
    chosen = {
        "default_transaction_read_only": "off",
        "synchronous_commit": "on" if live else "off",
        "maintenance_work_mem": f"{_WORK_MEMORY}MB",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
    later = {14: "idle_session_timeout", 17: "transaction_timeout"}
    return {**chosen, **{name: "0" for since, name in later.items() if server_major >= since}}


def loading_clients(settings: Settings, manifest: Manifest, server_major: int) -> Clients:
    """The client tools that can read this backup and talk to that server, and whose psql a hostile text gets
    nothing from. Raises ConfigurationError."""
    return find_restricting(max(server_major, major(manifest.dump.client_version)), settings.pg_bin_dir)


@dataclass
class Loaded:
    """What a backup's text said on its way, and what was waited for, in seconds of wall clock: `decrypt` for
    the artifact as text, `load` for the database up to the last row, `index` for all that comes after the
    rows."""

    noted: Noted = field(default_factory=Noted)
    took: Stopwatch = field(default_factory=lambda: Stopwatch("decrypt", "load", "index"))


def load(
    source: Source, address: Address, clients: Clients, server_major: int, observer: Observer | None = None
) -> Loaded:
    """Loads a backup into an empty database of a server of that version.

    Raises:
        DatabaseError: a statement failed. IntegrityError: the copy is not what its manifest promises.
        DiskError: no room for the archive, of a backup of format custom.
    """
    began, chosen = time.monotonic(), loading_parameters(server_major)
    by = _by_psql if source.manifest.dump.format == "sql" else _by_pg_restore
    loaded = by(source, address, clients, chosen, observer)
    loaded.took.rest("decrypt", of=time.monotonic() - began)
    return loaded


def _by_psql(
    source: Source,
    address: Address,
    clients: Clients,
    chosen: Mapping[str, str],
    observer: Observer | None,
) -> Loaded:
    with reading_directory(source.settings.backup_dir) as work, ExitStack() as stack:
        psql = stack.enter_context(loading(address, clients, chosen))
        taking = _Taking(psql, fitting(source, psql))
        _read_dump(source, taking, work, observer)
        with taking.loaded.took(taking.step):
            stack.close()
    return taking.loaded


class _Taking:
    """psql, behind whoever notes what passes; the time that it takes is noted too."""

    def __init__(self, psql: Child, sink: Writer) -> None:
        self.loaded, self.step = Loaded(), "load"
        self._psql, self._sink, self._along = psql, sink, self.loaded.noted.fingerprint()

    def write(self, data: bytes) -> None:
        self._along.write(data)
        if self.step == "load" and self._along.after_the_rows:
            with self.loaded.took("load"):
                self._psql.drain()
            self.step = "index"
        with self.loaded.took(self.step):
            self._sink.write(data)


def _by_pg_restore(
    source: Source,
    address: Address,
    clients: Clients,
    chosen: Mapping[str, str],
    observer: Observer | None,
) -> Loaded:
    settings, loaded, options = source.settings, Loaded(), source.manifest.dump.options
    without = [_MAKING_PUBLIC] if selects_schemas(options) else []
    with work_directory(settings.backup_dir) as work, unnamed_file(work) as (file, archive):
        _read_dump(source, file, work, observer)
        whole = source.manifest.content.large_objects.count > 0
        read_archive(archive, clients, loaded.noted.fingerprint(), schema_only=not whole)
        for step, sections in (("load", ("pre-data", "data")), ("index", ("post-data",))):
            with loaded.took(step):
                load_archive(
                    archive,
                    address,
                    clients,
                    chosen,
                    jobs=settings.backup_restore_jobs,
                    sections=sections,
                    without=without,
                    work=work,
                )
    return loaded


def load_text(source: Source, sink: Writer, observer: Observer | None = None) -> None:
    """Pushes a backup's SQL text, of whatever format, to its end. Raises as `load`."""
    with (
        reading_directory(source.settings.backup_dir) as work,
        dump_text(source.settings, source.manifest, sink) as text,
    ):
        _read_dump(source, text, work, observer)


def _read_dump(source: Source, sink: Writer, work: Path, observer: Observer | None) -> None:
    manifest = source.manifest
    plain = Hashing(Meter(observer, expected=manifest.dump.bytes, sink=sink))
    read_back(source.store, manifest.artifact, plain, source.key, work)
    compare(f"the dump in {source.store.address(manifest.artifact.name)}", manifest.dump, plain.seen())


def fitting(source: Source, psql: Writer) -> Writer:
    """A restricted psql that a backup's text may be written to as it is, whatever it was told to dump."""
    taking = WithoutRestriction(psql)
    return WithoutPublic(taking) if selects_schemas(source.manifest.dump.options) else taking


class WithoutPublic:
    """Passes a dump on without its CREATE SCHEMA public: told which schemas to dump, pg_dump makes that one
    too, which every database has already. Schemas come first in a dump, so the first such line is it."""

    _LINE = b"\nCREATE SCHEMA public;\n"

    def __init__(self, sink: Writer) -> None:
        self._sink, self._held, self._looked_at, self._passed = sink, b"", 0, False

    def write(self, data: bytes) -> None:
        if self._passed:
            self._sink.write(data)
            return
        data = self._held + data
        before, found, after = data.partition(self._LINE)
        self._looked_at += len(data) - len(self._held)
        if found or self._looked_at > _MOST_LOOKED_AT or _COMPLETE in data:
            self._passed, self._held = True, b""
            self._sink.write(before + b"\n" + after if found else data)
            return
        keep = max(len(self._LINE), len(_COMPLETE))
        self._held = data[-keep:]
        self._sink.write(data[:-keep])
