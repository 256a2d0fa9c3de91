"""The restore, as a job whose graph tells the story. Its defaults only plan.

Not assets: a restore materializes nothing. Its steps share one restoration, which lives as long as the
run does and tidies up with it, so they run in one process, and a run cannot be taken up in the middle.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

from dagster import (
    Config,
    Failure,
    In,
    JobDefinition,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    RunConfig,
    in_process_executor,
    job,
    mem_io_manager,
    op,
    resource,
)
from pydantic import Field

from backup_dag.core.restoring.plan import RestorePlan, Wish, moment
from backup_dag.core.restoring.restore import Restoration
from backup_dag.core.settings import Settings
from backup_dag.defs.words import in_dagsters_words, progress

_AFTER = {"before": In(Nothing)}


class RestoreConfig(Config):
    """What a restore is launched with. As it stands, it plans and changes nothing."""

    dry_run: bool = Field(default=True, description="Only plan: read the backup to its end, change nothing.")
    confirmation_code: str = Field(
        default="", description="The code that stands in the plan. Needed where dry_run is false."
    )
    backup: str = Field(default="latest", description="latest, an id, a path, or an s3:// address.")
    as_of: str = Field(
        default="", description="Instead of a backup: the newest whose snapshot is not later than this time."
    )
    database: str = Field(default="", description="Whose backup, where there are backups of several.")
    target_database: str = Field(default="", description="Where to. Empty: where the backup came from.")
    mode: Literal["swap", "new", "in-place"] = Field(
        default="swap",
        description="swap: into the target's place, the old one kept; new: into a new database; in-place:"
        " where none may be made, within one transaction.",
    )
    safety_backup: bool = Field(default=True, description="Back up the target as it is first.")


class Ground:
    """What the steps of one run share."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._restoration: Restoration | None = None
        self.config = RestoreConfig()
        self.plan: RestorePlan | None = None

    def begin(self, restoration: Restoration, config: RestoreConfig) -> Restoration:
        self._restoration, self.config = self._stack.enter_context(restoration), config
        return self._restoration

    @property
    def restoration(self) -> Restoration:
        if self._restoration is None:
            raise Failure("a restore cannot be taken up in the middle: launch the whole job again")
        return self._restoration


@resource(description="The restoration of one run; dropping what was half-made when the run ends.")
def ground() -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(stack)


def restore_job(settings: Settings) -> JobDefinition:
    """fetch → verify → plan → safety backup → build → prove → swap → report; a dry run ends with the plan."""

    @op(out=Out(Nothing), required_resource_keys={"ground"}, description="Find the backup and the target.")
    def fetch(context: OpExecutionContext, config: RestoreConfig) -> Output[None]:
        with in_dagsters_words():
            wish = Wish(
                backup=config.backup,
                as_of=moment(config.as_of, settings.zone),
                database=config.database or None,
                target_database=config.target_database or None,
                mode=config.mode,
                safety_backup=config.safety_backup,
            )
            restoration = Restoration(settings, wish, lambda what: progress(context, what))
            found = context.resources.ground.begin(restoration, config).fetch()
        said: dict[str, Any] = {
            "backup": str(found.id),
            "snapshot_time": MetadataValue.timestamp(found.manifest.snapshot_time),
            "manifest": MetadataValue.json(found.manifest.model_dump(mode="json")),
        }
        return Output(None, metadata=said)

    @op(ins=_AFTER, out=Out(Nothing), required_resource_keys={"ground"}, description="Read it to its end.")
    def verify(context: OpExecutionContext) -> None:
        shared: Ground = context.resources.ground
        with in_dagsters_words():
            shared.restoration.verify(to_its_end=shared.config.dry_run)

    @op(
        ins=_AFTER,
        out={"plan": Out(dict), "go": Out(Nothing, is_required=False)},
        required_resource_keys={"ground"},
        description="Say what would be done, and ask for the code before it is.",
    )
    def plan(context: OpExecutionContext) -> Iterator[Output[object]]:
        shared: Ground = context.resources.ground
        with in_dagsters_words():
            shared.plan = planned = shared.restoration.plan()
        text = "```text\n" + "\n".join(planned.lines) + "\n```"
        said: dict[str, Any] = {
            "plan": MetadataValue.md(text),
            "confirmation_code": planned.confirmation_code or "none: something stands in the way",
            "as_json": MetadataValue.json(planned.model_dump(mode="json")),
        }
        yield Output(planned.model_dump(mode="json"), "plan", metadata=said)
        if shared.config.dry_run:
            context.log.info("a dry run: nothing was changed, and the next steps are passed over")
            return
        with in_dagsters_words():
            planned.check()
            shared.restoration.confirm(planned, shared.config.confirmation_code)
        yield Output(None, "go")

    @op(ins=_AFTER, out=Out(Nothing), required_resource_keys={"ground"}, description="The target as it is.")
    def safety_backup(context: OpExecutionContext) -> Output[None]:
        shared: Ground = context.resources.ground
        assert shared.plan is not None
        with in_dagsters_words():
            made = shared.restoration.safety(shared.plan)
        return Output(None, metadata={"backup": made.backup if made else "none"})

    @op(
        ins=_AFTER, out=Out(Nothing), required_resource_keys={"ground"}, description="Beside the old, unused."
    )
    def build(context: OpExecutionContext) -> Output[None]:
        with in_dagsters_words():
            return Output(None, metadata={"database": context.resources.ground.restoration.build()})

    @op(ins=_AFTER, out=Out(Nothing), required_resource_keys={"ground"}, description="Every digest.")
    def prove(context: OpExecutionContext) -> Output[None]:
        with in_dagsters_words():
            proof = context.resources.ground.restoration.prove()
        said = {"seconds": proof.seconds, "notes": "\n".join(proof.notes) or "every digest at first sight"}
        return Output(None, metadata=said)

    @op(ins=_AFTER, out=Out(dict), required_resource_keys={"ground"}, description="Two renames, or none.")
    def swap(context: OpExecutionContext) -> dict[str, object]:
        with in_dagsters_words():
            return dict(context.resources.ground.restoration.swap().__dict__)

    @op(out=Out(dict), description="What was done, and what is kept.")
    def report(context: OpExecutionContext, done: dict) -> dict:  # type: ignore[type-arg]
        context.add_output_metadata(
            {
                "report": MetadataValue.json(done),
                "kept_as": done["kept_as"] or "nothing was there before",
                "window_ms": done["window_ms"] or 0.0,
                "safety_backup": done["safety_backup"] or "none",
                **{f"{step}_seconds": seconds for step, seconds in done["seconds"].items()},
            }
        )
        return done

    @job(
        name="restore",
        description="Restore a backup so that it cannot hurt. As it stands it only plans (dry_run: true).",
        config=RunConfig(ops={"fetch": RestoreConfig()}),
        resource_defs={"ground": ground, "io_manager": mem_io_manager},
        executor_def=in_process_executor,
    )
    def restore() -> None:
        _, go = plan(verify(fetch()))
        report(swap(prove(build(safety_backup(go)))))

    return restore
