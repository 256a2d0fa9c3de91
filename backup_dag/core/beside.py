"""The usual way of a restore: a new database beside the target, which then takes its place.

Until the renames, which are one transaction, nothing that serves has changed.
"""

from contextlib import suppress
from datetime import UTC, datetime

from backup_dag.core.errors import BackupDagError
from backup_dag.core.loading import load, loading_clients
from backup_dag.core.plan import facts_for
from backup_dag.core.postgres import connected
from backup_dag.core.proof import Proof, prove
from backup_dag.core.reading import Source
from backup_dag.core.roles import Roles, give_properties
from backup_dag.core.stream import Observer
from backup_dag.core.target import Target
from backup_dag.core.way import Done, Stopwatch


class Beside:
    """Build, prove, finish, in this order; `close` drops what was built and not finished."""

    def __init__(self, source: Source, target: Target, roles: Roles, took: Stopwatch) -> None:
        self._source, self._target, self._roles, self._took = source, target, roles, took
        self._new = ""

    def build(self, observer: Observer | None) -> str:
        """Loads the backup into a new database beside the target; returns its name."""
        manifest, target, now = self._source.manifest, self._target, datetime.now(UTC)
        clients = loading_clients(self._source.settings, manifest, target.session.server_major)
        facts = facts_for(target, manifest)
        self._new = target.aside("restoring", now)
        target.create(self._new, facts, manifest.backup, now)
        address = target.address.at(self._new)
        with self._took("load"):
            load(self._source, address, clients, observer)
        with connected(address) as session:
            with self._took("analyze"):
                session.rows("ANALYZE")
            # from within: what is said of a database is kept in the encoding of where it is said
            for statement in self._properties():
                session.rows(statement)
        return self._new

    def prove(self, observer: Observer | None) -> Proof:
        """Compares what was built with the manifest."""
        return prove(self._source, self._target.address.at(self._new), observer)

    def finish(self) -> Done:
        """Puts what was built in the target's place, in one transaction.

        Raises DatabaseError where it cannot; the target is as it was then.
        """
        target, now = self._target, datetime.now(UTC)
        keep_as = target.aside("before", now) if target.standing() else None
        seconds = target.swap(self._new, keep_as=keep_as, backup=self._source.manifest.backup, now=now)
        if keep_as is None:
            self._give_back_the_rest()
        return Done(keep_as, seconds if keep_as else None)

    def close(self) -> None:
        """Drops what was built, unless it has taken its place."""
        with suppress(BackupDagError):  # the next restore finds it by its mark
            if any(made.name == self._new for made in self._target.made("restoring")):
                self._target.drop(self._new)

    def _properties(self) -> list[str]:
        """Owner, limit, comment, grants and settings: those of the target, else those of the backup."""
        if self._target.standing() is None:
            source = self._source.manifest.source
            return self._target.session.properties_sql(source, source.settings, self._new)
        with connected(self._target.address) as session:
            return session.properties_sql(session.facts(), session.settings(), self._new)

    def _give_back_the_rest(self) -> None:
        """Settings whose values the manifest withholds stand in the globals, under the old name."""
        if self._target.name == self._source.manifest.source.dbname:
            with connected(self._target.address) as session:
                give_properties(session, self._roles)
