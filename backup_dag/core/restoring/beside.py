"""The usual way of a restore: a new database beside the target, which then takes its place.

Until the renames, which are one transaction, nothing that serves has changed.
"""

from contextlib import suppress
from datetime import UTC, datetime

from backup_dag.core.errors import BackupDagError, DatabaseError, DatabaseUnreachable
from backup_dag.core.history import Stopwatch
from backup_dag.core.manifest import Setting
from backup_dag.core.postgres import connected
from backup_dag.core.reading import Source
from backup_dag.core.restoring.loading import load, loading_clients
from backup_dag.core.restoring.marks import Made
from backup_dag.core.restoring.proof import Proof, prove
from backup_dag.core.restoring.roles import Roles, give_application_settings, give_properties
from backup_dag.core.restoring.target import Target
from backup_dag.core.restoring.way import Done
from backup_dag.core.sql import quoted
from backup_dag.core.stream import Observer


class Beside:
    """Hold, build, prove, finish, in this order; `close` drops what was built and not finished.

    With `keep` it takes the target's place, which is kept; without, there must be none.
    """

    def __init__(
        self, source: Source, target: Target, roles: Roles, took: Stopwatch, *, keep: bool = True
    ) -> None:
        self._source, self._target, self._roles = source, target, roles
        self._took, self._keep = took, keep
        self._new = ""

    def hold(self) -> None:
        """Nothing: what is written to the target meanwhile is in the database that is kept."""

    def build(self, observer: Observer | None) -> str:
        """Loads the backup into a new database beside the target; returns its name."""
        manifest, target, now = self._source.manifest, self._target, datetime.now(UTC)
        server = target.session.server_major
        clients = loading_clients(self._source.settings, manifest, server)
        self._facts = target.facts() if target.standing() else manifest.source
        self._new = target.aside("restoring", now)
        target.create(self._new, self._facts, manifest.backup, now)
        self._give_application_settings()
        address = target.address.at(self._new)
        with self._took("load"):
            self._noted = load(self._source, address, clients, server, observer).noted
        with self._took("analyze"), connected(address) as session:
            session.rows("ANALYZE")
        return self._new

    def prove(self, observer: Observer | None) -> Proof:
        """Compares what was built with the manifest."""
        return prove(self._source, self._noted, self._target.address.at(self._new), observer)

    def finish(self) -> Done:
        """Puts what was built in the target's place, in one transaction.

        Raises DatabaseError where it cannot; the target is as it was then.
        """
        target, now, facts = self._target, datetime.now(UTC), self._facts
        self._give_properties()
        keep = None
        if self._keep and target.standing():
            aside = target.aside("before", now)
            keep = Made(aside, "before", target.name, now, self._source.manifest.backup, facts.comment)
        seconds = target.swap(self._new, keep=keep, grants=self._grants())
        target.comment(facts.comment)
        if keep is None:
            self._give_back_the_rest()
            return Done(None, None)
        return Done(keep.name, seconds)

    def close(self) -> None:
        """Drops what was built, unless it has taken its place."""
        with suppress(BackupDagError):  # the next restore finds it by its mark
            if any(made.name == self._new for made in self._target.made("restoring")):
                self._target.drop(self._new)

    def _give_application_settings(self) -> None:
        """Before the rows, whose constraints may ask for them: the target's own, else the backup's."""
        session = self._target.session
        if not self._target.standing():
            give_application_settings(session, self._roles, self._new)
            return
        own = [each for each in self._settings_of_the_target() if "." in each.name and not each.role]
        for statement in session.settings_sql(own, self._new):
            with suppress(DatabaseError):  # what cannot be given is said when all of them are
                session.rows(statement)

    def _give_properties(self) -> None:
        """Owner, limit and settings: the target's own, else the backup's. From within, and after the proof:
        settings may be such that nothing could be proven under them."""
        target = self._target
        settings = self._facts.settings
        if target.standing():
            settings = self._settings_of_the_target()
        plain = self._facts.model_copy(update={"comment": None})
        with connected(target.address.at(self._new)) as session:
            for statement in session.properties_sql(plain, settings, self._new):
                session.rows(statement)

    def _settings_of_the_target(self) -> list[Setting]:
        """Values included; from outside, where the target cannot be connected to."""
        try:
            with connected(self._target.address) as session:
                return session.settings()
        except DatabaseUnreachable:
            return self._target.session.settings(self._target.name)

    def _grants(self) -> list[str]:
        """They open it to others, so they come with the swap."""
        if not self._facts.grants:
            return [f"GRANT CONNECT, TEMPORARY ON DATABASE {quoted(self._new)} TO PUBLIC"]  # PostgreSQL's own
        return self._target.session.grants_sql(self._facts, self._new)

    def _give_back_the_rest(self) -> None:
        """Settings whose values the manifest withholds stand in the globals, under the old name."""
        if self._target.name == self._source.manifest.source.dbname:
            with connected(self._target.address) as session:
                give_properties(session, self._roles)
