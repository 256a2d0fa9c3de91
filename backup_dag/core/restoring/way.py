"""What the ways of a restore have in common: beside the target, or in its place."""

from dataclasses import dataclass
from typing import Protocol

from backup_dag.core.restoring.proof import Proof
from backup_dag.core.stream import Observer


@dataclass(frozen=True)
class Done:
    """A finished restore: the name under which the old database is kept, and the seconds in which none
    answered. None: none was kept; none was there before."""

    kept_as: str | None
    window: float | None


class Way(Protocol):
    """Hold, build, prove, finish, in this order. Until `finish` the target serves what it did."""

    def hold(self) -> None:
        """Before the safety backup: from here on nothing is written to the target that would be lost.

        Raises DatabaseError where that cannot be had.
        """
        ...

    def build(self, observer: Observer | None) -> str:
        """Loads the backup; returns where to, in words.

        Raises:
            DatabaseError: the server refused. IntegrityError: the copy changed since it was verified.
        """
        ...

    def prove(self, observer: Observer | None) -> Proof:
        """Compares what was built with the manifest."""
        ...

    def finish(self) -> Done:
        """Puts it in the target's place, or raises and changes nothing."""
        ...

    def close(self) -> None:
        """Undoes what was built and not finished. Never raises for that."""
        ...
