"""A small part of `make torture`: a few nights after another, and that growth would be told."""

from dataclasses import replace

import pytest

from torture.soak import Measured, growing, soak

SEED = 1609  # a night with each fault, in the first eight
FLAT = Measured(
    memory=100 << 20, descriptors=10, threads=3, processes=0, local=1 << 20, files=30, bucket=2 << 20
)


@pytest.mark.timeout(300)
def test_nights_leave_what_the_policy_keeps() -> None:
    tally, _ = soak(SEED, nights=8)
    assert tally.found == ()
    assert tally.held == tally.tried
    assert tally.tried > 8 + 6


@pytest.mark.parametrize(
    "what", ["memory", "descriptors", "threads", "processes", "local", "files", "bucket"]
)
def test_what_grows_is_told(what: str) -> None:
    grown = replace(FLAT, **{what: getattr(FLAT, what) * 2 + 5})
    assert growing([FLAT] * 12) == []
    [said] = growing([FLAT] * 9 + [grown] * 3)
    assert said.startswith(f"{what} grew")
