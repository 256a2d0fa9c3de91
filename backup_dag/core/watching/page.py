"""The posture in words: a row for each database, what does not hold with what to do, one page of Markdown."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from backup_dag.core.in_words import length
from backup_dag.core.store.base import FOREVER
from backup_dag.core.watching.places import Verdict
from backup_dag.core.watching.posture import Aged, DatabasePosture, Posture
from backup_dag.core.watching.strip import DAYS

COLUMNS = ["database", "newest", "proven", "RPO", "RTO", "3-2-1", "share", "missing", "encrypted", "locked"]
UNKNOWN = "?"
_MOST_NAMED = 8  # databases of which the same is said
_HOLDS = {True: "✓", False: "✗", None: UNKNOWN}
_CALLED = {
    "rpo": "RPO",
    "rto": "RTO",
    "copies": "3 copies",
    "media": "2 media",
    "off_site": "1 off-site",
    "proof": "proof",
    "intact": "copies intact",
    "own_checks": "your own checks",
    "days": "days",
    "encryption": "encryption",
    "immutability": "immutability",
}
SIGNS = "✓ holds   ✗ does not   ? not known"


def row(of: DatabasePosture) -> list[str]:
    """A database by COLUMNS. Short: what does not hold is said below it."""
    holds = {name: _HOLDS[verdict.holds] for name, verdict in of.verdicts.items()}
    share = f", {of.proven_percent:g} %" if of.proven_percent else ""
    missing = str(len(of.days_missing)) if of.days_missing is not None and of.retained else UNKNOWN
    took = f" {length(of.last_recovery.seconds)}" if of.last_recovery else ""
    return [
        of.database,
        _age(of, of.newest_good),
        _age(of, of.newest_proven),
        holds["rpo"],
        f"{holds['rto']}{took}",
        f"3{holds['copies']} 2{holds['media']} 1{holds['off_site']}",
        UNKNOWN if of.retained is None else f"{of.proven} of {of.retained}{share}",
        missing,
        "no key" if of.unopened else holds["encryption"],
        _end(of.locked_until) if of.locked_until else holds["immutability"],
    ]


def _end(of_lock: datetime) -> str:
    return "no end" if of_lock == FOREVER else f"{of_lock:%Y-%m-%d}"


def _age(of: DatabasePosture, aged: Aged | None) -> str:
    """Where a store did not answer there may be a newer one, and none known is not none."""
    if aged is None:
        return UNKNOWN if of.not_asked else "none"
    return f"{length(aged.age_seconds)}{UNKNOWN if of.not_asked else ''}"


def not_holding(found: Posture) -> Iterator[tuple[str, str, str]]:
    """What does not hold or is not known: what and of which databases, what is so, what to do. The same of
    several databases is said once."""
    said: dict[tuple[str, Verdict], list[str]] = {}
    for each in found.databases:
        for name, verdict in each.verdicts.items():
            if not verdict.holds:
                said.setdefault((name, verdict), []).append(each.database)
    for name in _CALLED:
        for (which, verdict), databases in said.items():
            if which == name:
                more = f" and {len(databases) - _MOST_NAMED} more" if len(databases) > _MOST_NAMED else ""
                whose = f"{', '.join(databases[:_MOST_NAMED])}{more}"
                yield f"{_HOLDS[verdict.holds]} {_CALLED[name]} ({whose})", verdict.said, verdict.advice


def remarks(found: Posture) -> Iterator[str]:
    """What concerns the look itself, and backups that no clock of ours explains."""
    for label, message in found.away.items():
        yield f"not asked: {label}; what it would have to say is not known ({message})"
    for name, message in found.faults.items():
        yield f"the configuration of {name} cannot be used: {message}"
    for each in found.databases:
        if each.dated_ahead:
            yield f"{each.database}: {each.dated_ahead} dated in the future, which count for no newest one"


def markdown(found: Posture, picture: str = "") -> str:
    """One page. `picture` is the address of an image, or data: with the image itself."""
    allowed = f"RPO {length(found.rpo_target_seconds)}, RTO {length(found.rto_target_seconds)}"
    lines = [f"**{found.made:%Y-%m-%d %H:%M} UTC**: {_summary(found)} (allowed: {allowed})", ""]
    lines += _table(COLUMNS, [row(each) for each in found.databases])
    lines += ["", ", ".join(SIGNS.split("   ")), ""]
    if picture:
        lines += [f"![the last weeks of each database, and its recovery times]({picture})", ""]
    told = list(not_holding(found))
    lines += ["### What does not hold", ""] if told else []
    for what, said, advice in told:
        lines.append(
            f"- **{_plain(what)}**: {_plain(said)}" + (f"  \n  → {_plain(advice)}" if advice else "")
        )
    lines += ["", "### Each database", ""]
    for each in found.databases:
        lines += [f"**{_plain(each.database)}**", "", *(f"- {_plain(line)}" for line in details(each)), ""]
    lines += [f"- {_plain(remark)}" for remark in remarks(found)]
    return "\n".join(lines).rstrip() + "\n"


def _summary(found: Posture) -> str:
    verdicts = [verdict.holds for each in found.databases for verdict in each.verdicts.values()]
    databases = f"{len(found.databases)} databases" if len(found.databases) != 1 else "one database"
    said = f"of {len(verdicts)} statements on {databases} {verdicts.count(True)} hold"
    return f"{said}, {verdicts.count(False)} do not, {verdicts.count(None)} not known"


def details(of: DatabasePosture) -> Iterator[str]:
    """What the row has no room for: which backups, where each copy is, which key."""
    for called, aged in (("newest good", of.newest_good), ("newest proven", of.newest_proven)):
        if aged:
            yield f"{called}: {aged.backup}, {length(aged.age_seconds)} old"
    if measured := of.last_recovery:
        when = f"{measured.time:%Y-%m-%d %H:%M} UTC"
        yield f"last {measured.what}: {measured.backup}, {length(measured.seconds)} on {when}"
    for place in of.places:
        yield f"copy: {place.address}, on {place.machine or 'a machine that is not known'}"
    for name in ("encryption", "immutability"):
        if of.verdicts[name].holds:
            yield f"{name}: {of.verdicts[name].said}"
    yield f"the last {DAYS} days: {of.strip}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(map(_plain, line)) + " |" for line in lines]


def _plain(text: str) -> str:
    """Text that says what it says: no markup of its own, and no end of a table's cell."""
    for sign in "\\`*_[]<|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
