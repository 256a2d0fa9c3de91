"""Children: their end is known before their output is believed, and they never outlive us."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from backup_dag.core import process, stall
from backup_dag.core.process import ChildFailed, ChildStalled, running
from backup_dag.core.stream import BLOCK

ENV = process.environment()


def test_a_child_speaks_english_and_keeps_its_users_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("LC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("LC_MESSAGES", "de_DE.UTF-8")
    found = process.output(["locale"], env=process.environment()).splitlines()
    assert {"LC_MESSAGES=C", "LC_CTYPE=C.UTF-8", "LC_ALL="} <= {each.replace('"', "") for each in found}


def shell(script: str, *words: str) -> list[str]:
    return ["sh", "-c", script, "sh", *words]


def drained(child: process.Child) -> bytes:
    said = b""
    while block := child.read():
        said += block
    return said


def gone(pid: int) -> bool:
    """Ended, whether or not its parent has reaped it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def pid_in(file: Path) -> int:
    assert soon(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


# -- end-of-file


def test_the_whole_output_and_then_end_of_file() -> None:
    with running(shell("printf one; sleep 0.1; printf two"), env=ENV) as child:
        assert drained(child) == b"onetwo"
        assert child.read() == b""


def test_a_megabyte_comes_through_unchanged() -> None:
    with running(["head", "-c", "5000000", "/dev/zero"], env=ENV) as child:
        assert drained(child) == bytes(5_000_000)


def test_no_end_of_file_after_a_failure() -> None:
    with running(shell("echo x; echo the reason >&2; exit 3"), env=ENV) as child:
        assert child.read() == b"x\n"
        with pytest.raises(ChildFailed) as failed:
            child.read()
    assert failed.value.status == 3
    assert failed.value.stderr == "the reason"
    assert str(failed.value) == "sh exited 3: the reason"


def test_a_child_that_closes_its_output_and_then_fails_is_a_failure() -> None:
    with running(shell("echo x; exec >&-; sleep 0.2; exit 4"), env=ENV) as child, pytest.raises(ChildFailed):
        drained(child)


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (11, "SIGSEGV"), (34, "SIGRTMIN"), (40, "40")]
)
def test_a_killed_child_is_named_by_its_signal(number: int, name: str) -> None:
    with (
        running(shell(f"echo x; kill -{number} $$"), env=ENV) as child,
        pytest.raises(ChildFailed, match=f"sh was killed by .*{name}") as failed,
    ):
        drained(child)
    assert failed.value.status == -number


def test_a_program_that_is_not_there_fails_and_says_so() -> None:
    with (
        pytest.raises((ChildFailed, FileNotFoundError), match="no-such-program"),
        running(["/no-such-program"], env=ENV) as child,
    ):
        child.read()


# -- stderr


def test_much_on_stderr_blocks_no_one_and_its_end_is_kept() -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' e >&2; echo out; echo last words >&2; exit 1"
    with running(shell(script), env=ENV) as child, pytest.raises(ChildFailed) as failed:
        drained(child)
    assert failed.value.stderr.endswith("last words")
    assert len(failed.value.stderr) <= 16 * 1024


def test_stderr_that_is_not_text_is_told_as_well_as_can_be() -> None:
    with (
        running(shell("printf 'caf\\351' >&2; exit 1"), env=ENV) as child,
        pytest.raises(ChildFailed) as failed,
    ):
        drained(child)
    assert failed.value.stderr == "caf�"


# -- input


def test_what_is_written_is_the_childs_input() -> None:
    with running(["wc", "-c"], env=ENV, stdin=subprocess.PIPE) as child:
        for _ in range(3):
            child.write(bytes(BLOCK))
        child.end_input()
        assert drained(child).strip() == str(3 * BLOCK).encode()


def test_writing_to_a_child_that_failed_tells_its_reason() -> None:
    with (
        running(shell("echo cannot >&2; exit 5"), env=ENV, stdin=subprocess.PIPE) as child,
        pytest.raises(ChildFailed, match="exited 5: cannot"),
    ):
        write_much(child)


def write_much(child: process.Child) -> None:
    for _ in range(100):
        child.write(bytes(BLOCK))
    child.end_input()


# -- leaving the block


class Left(Exception):
    pass


def test_leaving_the_block_ends_a_child_that_still_talks() -> None:
    with running(["yes"], env=ENV) as child:
        child.read(10)
        pid = only_child_named("yes").pid
    assert gone(pid)


def only_child_named(name: str) -> psutil.Process:
    found = [child for child in psutil.Process().children(recursive=True) if child.name() == name]
    assert len(found) == 1
    return found[0]


def test_an_exception_ends_the_child_and_its_children(tmp_path: Path) -> None:
    with pytest.raises(Left):
        left_while_it_sleeps(tmp_path / "pid")
    grandchild = pid_in(tmp_path / "pid")
    assert soon(lambda: gone(grandchild))


def left_while_it_sleeps(file: Path) -> None:
    with running(shell('sleep 300 & echo $! > "$1"; wait', str(file)), env=ENV):
        assert not gone(pid_in(file))
        raise Left


def test_a_grandchild_is_ended_where_the_child_has_ended_already(tmp_path: Path) -> None:
    script = 'sleep 300 >/dev/null 2>&1 & echo $! > "$1"'
    with running(shell(script, str(tmp_path / "pid")), env=ENV) as child:
        assert drained(child) == b""
        grandchild = pid_in(tmp_path / "pid")
    try:
        assert soon(lambda: gone(grandchild), 2)
    finally:
        end(grandchild)


def test_a_grandchild_that_ignores_the_polite_signal_is_ended_too(tmp_path: Path) -> None:
    script = "(trap '' TERM; echo $$ >/dev/null; exec sleep 300) >/dev/null 2>&1 & echo $! > \"$1\"; wait"
    with running(shell(script, str(tmp_path / "pid")), env=ENV):
        grandchild = pid_in(tmp_path / "pid")
        assert soon(lambda: psutil.Process(grandchild).name() == "sleep")
    try:
        assert soon(lambda: gone(grandchild), 2)
    finally:
        end(grandchild)


def end(pid: int) -> None:
    """What a failed test would leave behind."""
    if not gone(pid):
        os.kill(pid, signal.SIGKILL)


def test_a_child_that_ignores_the_polite_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PATIENCE", 0.3)
    began = time.monotonic()
    with running(shell("trap '' TERM; echo $$; while :; do sleep 0.05; done"), env=ENV) as child:
        pid = int(child.read())
    assert time.monotonic() - began < 5
    assert gone(pid)


def test_no_file_is_left_open() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    process.output(["true"], env=ENV)
    before = open_files()
    for _ in range(5):
        process.output(["true"], env=ENV)
        with pytest.raises(ChildFailed):
            process.output(["false"], env=ENV)
    assert soon(lambda: open_files() <= before)


# -- when we die


PARENT = """
import sys, time
from backup_dag.core import process, stall
with process.running(["sleep", "300"], env=process.environment()) as child:
    print(child._popen.pid, flush=True)
    time.sleep(300)
"""


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    assert process.dies_with_us()
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert soon(lambda: psutil.Process(child).name() == "sleep")
        parent.kill()
    assert soon(lambda: gone(child))


# -- environment

SECRETS = {
    "DATABASE_URL": "postgresql://u:secret@h/d",
    "ORDERS_DATABASE_URL": "postgresql://u:secret@h/d",
    "BACKUP_ENCRYPTION_KEY": "secret",
    "BACKUP_ENCRYPTION_KEY_FILE": "/secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ACCESS_KEY_ID": "secret",
    "AWS_SESSION_TOKEN": "secret",
    "DAGSTER_CLOUD_TOKEN": "secret",
    "SOME_PASSWORD": "secret",
    "PGPASSWORD": "secret",
    "PATHSECRET": "secret",
}


def test_a_child_is_told_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    said = process.output(["env", "-0"], env=process.environment({"EXTRA": "yes"}))
    seen = dict(entry.split("=", 1) for entry in said.split("\0") if entry)
    assert not SECRETS.keys() & seen.keys()
    assert not any("secret" in value for value in seen.values())
    assert seen["PATH"] == os.environ["PATH"]
    assert (seen["LC_CTYPE"], seen["EXTRA"]) == ("C.UTF-8", "yes")


# -- those that stand still


@pytest.fixture
def _impatient() -> None:
    stall.allow(0.5)


@pytest.mark.usefixtures("_impatient")
def test_a_child_that_gives_nothing_is_not_waited_for() -> None:
    with (
        running(shell("echo x; exec sleep 60"), env=ENV) as child,
        pytest.raises(ChildStalled, match=r"^sh gave no byte for 1 s$"),
    ):
        drained(child)
    assert child.is_over


@pytest.mark.usefixtures("_impatient")
def test_a_child_that_takes_nothing_is_not_waited_for() -> None:
    with (
        running(shell("exec sleep 60"), env=ENV, stdin=process.PIPE) as child,
        pytest.raises(ChildStalled, match="took no byte"),
    ):
        child.write(bytes(5 * BLOCK))
    assert child.is_over


@pytest.mark.usefixtures("_impatient")
def test_a_child_that_leaves_something_in_its_pipe_is_not_waited_for() -> None:
    with running(shell("exec sleep 60"), env=ENV, stdin=process.PIPE) as child:
        child.write(b"some")
        with pytest.raises(ChildStalled, match="took no byte"):
            child.drain()


@pytest.mark.usefixtures("_impatient")
def test_a_child_that_does_not_end_is_not_waited_for() -> None:
    with (
        running(shell("exec >&-; exec sleep 60"), env=ENV) as child,
        pytest.raises(ChildStalled, match="did not end"),
    ):
        child.read()


@pytest.mark.usefixtures("_impatient")
def test_a_slow_child_that_takes_all_gets_all() -> None:
    script = "for n in 1 2 3 4 5 6; do sleep 0.2; head -c 1000000 >/dev/null; done; wc -c"
    with running(shell(script), env=ENV, stdin=process.PIPE) as child:
        child.write(bytes(5_900_000))
        child.write(b"x" * 100_001)
        child.end_input()
        assert int(drained(child)) == 1


def test_a_child_that_is_stopped_ends_at_once() -> None:
    with running(["sleep", "60"], env=ENV) as child:
        psutil.Process(child._popen.pid).suspend()
        began = time.monotonic()
    assert time.monotonic() - began < 2
