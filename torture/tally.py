"""What came of one kind of fault."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tally:
    """`tried` cases, in `held` of which every promise was kept; `found` says of each of the others what was
    not, and how to run it alone."""

    kind: str
    tried: int
    held: int
    found: tuple[str, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.kind, self.tried + other.tried, self.held + other.held, self.found + other.found)
