"""Out of a whole dump, its definitions and the rows of a few tables, into a database aside.

Two psqls: the first runs the definitions, and passes over what fails there (a role that is gone, an
extension that nobody has any more): only what the tables need counts, and that is proven afterwards. The
second takes the rows, and stops at the first error.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Self

from backup_dag.core.address import Address
from backup_dag.core.clients import Clients
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import connected
from backup_dag.core.psql import loading
from backup_dag.core.restoring.asked import Asked
from backup_dag.core.restoring.rows import Rows, rows_of
from backup_dag.core.sql import literal
from backup_dag.core.stream import Both, Writer


class Picking:
    """Reads along a dump: definitions are written to it, rows asked of it. `asked` is known from the first
    rows on; `resolve` finds it, once the definitions are there."""

    def __init__(
        self,
        address: Address,
        clients: Clients,
        parameters: Mapping[str, str],
        resolve: Callable[[], list[Asked]],
    ) -> None:
        self._address, self._clients, self._parameters = address, clients, parameters
        self._resolve = resolve
        self._defining, self._filling = ExitStack(), ExitStack()
        self._open = self._has_rows = False
        self._sums: dict[str, Rows] = {}
        self.asked: list[Asked] = []

    def __enter__(self) -> Self:
        # both now, by this thread: a child ends with the thread that started it, and rows come from another
        with self._filling as begun:
            self._psql = self._start(begun, strict=True)
            self._definitions = self._start(self._defining, strict=False)
            self._filling = begun.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._defining.__exit__(*error)  # type: ignore[arg-type]
        finally:
            self._filling.__exit__(*error)  # type: ignore[arg-type]

    def write(self, text: bytes) -> None:
        """Text that is not rows. What comes after the first rows (indexes, triggers …) is left out."""
        if not self._has_rows:
            self._definitions.write(text)

    def rows(self, name: str, what: bytes) -> "Writer | None":
        """Takes the rows of a table that was asked for; passes over those of others."""
        self._begin_rows()
        self._end_table()
        if name not in self._sums:
            return None
        self._open = True
        self._sums[name].what = what
        self._psql.write(b"COPY " + what + b" FROM stdin;\n")
        return Both(self._psql, self._sums[name])

    def finish(self) -> None:
        """Returns once everything is loaded. Raises DatabaseError."""
        self._begin_rows()
        self._end_table()
        self._filling.close()

    def other_rows(self, manifest: Manifest) -> list[str]:
        """The tables that do not hold what was read for them, or not as many rows as were backed up."""
        wrong = []
        for name, read in self._sums.items():
            with connected(self._address) as session:
                there = rows_of(session, read, manifest.source.encoding) if read.what else Rows()
            if read.total != there.total or read.total[0] != manifest.content.tables[name].rows:
                wrong.append(name)
        return wrong

    def _start(self, stack: ExitStack, *, strict: bool) -> Writer:
        return stack.enter_context(loading(self._address, self._clients, self._parameters, strict=strict))

    def _begin_rows(self) -> None:
        """The definitions are complete: what was asked for is found in them, and only then rows follow."""
        if self._has_rows:
            return
        self._has_rows = True
        self._defining.close()
        self.asked = self._resolve()
        self._sums = {part: Rows() for each in self.asked for part in each.parts}
        self._let_anything_in()

    def _let_anything_in(self) -> None:
        """Without checks: one that looks at another table, or calls what is not there, would refuse rows that
        were there."""
        names = ", ".join(
            f"{literal(name)}::regclass" for each in self.asked for name in {each.name, *each.parts}
        )
        dropping = f"""
            SELECT format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I CASCADE', conrelid::regclass, conname)
                   AS said
            FROM pg_constraint WHERE contype = 'c' AND coninhcount = 0 AND conrelid IN ({names})
        """
        with connected(self._address) as session:
            for row in session.rows(dropping):
                session.rows(row["said"])

    def _end_table(self) -> None:
        if self._open:
            self._psql.write(b"\\.\n")
            self._open = False
