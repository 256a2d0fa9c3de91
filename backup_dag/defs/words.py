"""What every step says in Dagster's words: progress as lines of the log, our errors as its Failure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from dagster import (
    AssetCheckExecutionContext,
    AssetExecutionContext,
    DagsterInvariantViolationError,
    Failure,
    MetadataValue,
    OpExecutionContext,
    RetryRequested,
)

from backup_dag.core.audit import acting_for
from backup_dag.core.errors import BackupDagError, GuardRefused
from backup_dag.core.stream import Observer, Passed, every

_SECONDS_BETWEEN_LINES = 5


Clock = Callable[[], datetime]
"""Tells the time, in UTC. Tests have one of their own."""


def the_time() -> datetime:
    return datetime.now(UTC)


Context = OpExecutionContext | AssetExecutionContext | AssetCheckExecutionContext


def progress(context: Context, what: str) -> Observer:
    """A line in the run's log at the first byte, then every few seconds."""
    later = every(_SECONDS_BETWEEN_LINES, lambda passed: context.log.info(f"{what} {passed}"))
    begun = False

    def observe(passed: Passed) -> None:
        nonlocal begun
        if not begun:
            begun = True
            context.log.info(f"{what}: the first bytes have come")
        later(passed)

    return observe


@contextmanager
def in_dagsters_words() -> Iterator[None]:
    """Our errors as Dagster's Failure: the hint beside it, and retried only where that can help.

    What is noted in the audit log meanwhile carries the run's id; a sensor has none.
    """
    try:
        with acting_for(_this_run()):
            yield
    except BackupDagError as error:
        raise Failure(
            description=str(error),
            metadata={"next": MetadataValue.text(error.hint), "exit_code": error.exit_code},
            allow_retries=error.retryable,
        ) from error


@contextmanager
def tried_again(context: AssetExecutionContext, times: int, seconds: float) -> Iterator[None]:
    """A step that fails where trying again may help is tried again, so many times: after so many seconds, and
    twice as long each time. Not by a policy on the step: Dagster holds to that also where the run is told to
    end, which would then go on."""
    try:
        yield
    except Failure as failure:
        if failure.allow_retries and context.retry_number < times:
            raise RetryRequested(times, seconds * 2**context.retry_number) from failure
        raise


def day_of(context: AssetExecutionContext) -> str:
    """The day that a run is for. Raises GuardRefused where none was chosen."""
    if not context.has_partition_key:
        raise GuardRefused(
            "no day was chosen for this run", hint="choose a partition in the launchpad, a day"
        )
    return str(context.partition_key)


def _this_run() -> str | None:
    try:
        return OpExecutionContext.get().run_id
    except DagsterInvariantViolationError:  # outside of a step
        return None
