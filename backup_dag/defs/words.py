"""What every step says in Dagster's words: progress as lines of the log, our errors as its Failure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from dagster import (
    AssetCheckExecutionContext,
    AssetExecutionContext,
    DagsterInvariantViolationError,
    Failure,
    MetadataValue,
    OpExecutionContext,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from backup_dag.core.audit import acting_for
from backup_dag.core.errors import BackupDagError, GuardRefused
from backup_dag.core.stream import Observer, Passed, every

_SECONDS_BETWEEN_LINES = 5


Done = TypeVar("Done")
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


def patiently(context: AssetExecutionContext, times: int, seconds: float, work: Callable[[], Done]) -> Done:
    """Does it; where it fails and trying again can help, again, so many times, after so many seconds, and
    twice as many each later time. Not by a retry policy of Dagster's: it holds to that also where the run is
    told to end, which then goes on."""

    def tell(state: RetryCallState) -> None:
        error, wait = (
            state.outcome and state.outcome.exception(),
            state.next_action and state.next_action.sleep,
        )
        context.log.warning(f"{error}\ntrying again in {wait:.0f} s, {state.attempt_number} of {times}")

    again = Retrying(
        stop=stop_after_attempt(times + 1),
        wait=wait_exponential(multiplier=seconds),
        retry=retry_if_exception(lambda error: isinstance(error, BackupDagError) and error.retryable),
        before_sleep=tell,
        reraise=True,
    )
    return again(work)


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
