"""Which machine a database is on, as far as its address tells."""

import socket

import pytest

from backup_dag.core.address import Address, this_machine


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("postgresql://u@db1.example.com:5432/shop", "db1.example.com"),
        ("postgresql://u@localhost/shop", ""),
        ("postgresql://u@[::1]/shop", ""),
        ("postgresql://u@127.0.0.1,db2/shop", "db2"),
        ("postgresql:///shop", ""),
        ("postgresql:///shop?host=/var/run/postgresql", ""),
        ("host=localhost hostaddr=10.0.0.7 dbname=shop", "10.0.0.7"),
        ("service=far dbname=shop", None),
        (f"postgresql://u@{socket.gethostname()}/shop", ""),
    ],
)
def test_the_host_is_the_machine_that_serves_it(url: str, host: str | None) -> None:
    assert Address.of(url).host == host


def test_what_libpq_would_read_from_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db1")
    assert Address.of("postgresql:///shop").host == "db1"
    assert Address.of("postgresql://localhost/shop").host == ""
    monkeypatch.delenv("PGHOST")
    monkeypatch.setenv("PGSERVICE", "far")
    assert Address.of("postgresql:///shop").host is None


def test_a_name_that_only_looks_like_this_machines_is_not() -> None:
    assert [this_machine(name) for name in ("LOCALHOST", "db.localhost", "@socket")] == [True] * 3
    assert [this_machine(name) for name in ("localhost.example.com", "128.0.0.1", "::2")] == [False] * 3
