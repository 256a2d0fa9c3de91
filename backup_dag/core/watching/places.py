"""Three copies, two media, one off-site: which of them hold for a backup, and why not. Pure.

The database itself counts as a copy. What stands on one machine is lost with it, so it is one medium,
whatever it is called; and off-site is a bucket that neither this machine nor the database's serves.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from backup_dag.core.address import this_machine

ASK_AGAIN = "ask again once the store answers"
"""What to do about what is not known."""

_HERE = "this machine"


class Verdict(BaseModel):
    """Whether something is as it should be, None where that is not known; what is so, and what to do."""

    model_config = ConfigDict(frozen=True)

    holds: bool | None
    said: str
    advice: str = ""


class Place(BaseModel):
    """Where a copy is. `machine` None: not known."""

    model_config = ConfigDict(frozen=True)

    what: str
    address: str
    machine: str | None


def machine_of(host: str | None) -> str | None:
    """A host by its name, "" being this machine as every loopback address is. None where it is not known."""
    return host if host is None else _HERE if this_machine(host) else host.lower()


def three_copies(places: Sequence[Place], configured: bool, away: Sequence[str]) -> Verdict:
    """`configured`: whether the database itself is known here; `away`: the stores that did not answer."""
    said = f"{len(places)} {'copies' if len(places) != 1 else 'copy'}: {_named(places)}"
    if len(places) >= 3:
        return Verdict(holds=True, said=said)
    if away:
        return _not_known(f"{said}, as far as was asked", away)
    advice = "keep one in BACKUP_DIR and one in a bucket (AWS_S3_BUCKET)"
    return Verdict(holds=False if configured else None, said=said, advice=advice)


def two_media(places: Sequence[Place], configured: bool, away: Sequence[str]) -> Verdict:
    """As `three_copies`."""
    machines = sorted({place.machine for place in places if place.machine})
    known = configured and not away and all(place.machine for place in places)
    which = "all copies are" if known else "all copies whose machine is known are"
    said = f"{which} on {machines[0]}" if len(machines) == 1 else f"on {', '.join(machines)}"
    if len(machines) >= 2:
        return Verdict(holds=True, said=said)
    if not machines:
        said = "no copy whose machine is known"
    if away:
        return _not_known(f"{said}, as far as was asked", away)
    advice = "what one machine holds is lost with it: use a bucket elsewhere (AWS_S3_BUCKET)"
    return Verdict(holds=False if known else None, said=said, advice=advice)


def one_off_site(places: Sequence[Place], bucket: bool, away: Sequence[str]) -> Verdict:
    """`bucket`: whether one is set; `away` as in `three_copies`."""
    near = {_HERE, *(place.machine for place in places if place.what == "database")}
    in_buckets = [place for place in places if place.what == "s3"]
    far = [place for place in in_buckets if place.machine not in near]
    if far:
        return Verdict(holds=True, said=f"{far[0].address}, served by {far[0].machine}")
    if in_buckets:
        said = f"the bucket is served by {in_buckets[0].machine}, which is lost with what it backs up"
        return Verdict(holds=False, said=said, advice="use a bucket of another site (AWS_ENDPOINT_URL_S3)")
    if not bucket:
        return Verdict(holds=False, said="no bucket is set", advice="set AWS_S3_BUCKET and its credentials")
    if "s3" in away:
        return _not_known("what the bucket holds is not known", away)
    return Verdict(
        holds=False if not away else None,
        said="the newest good backup has no good copy in the bucket",
        advice="backup-dag backup copies what the bucket lacks",
    )


def _not_known(said: str, away: Sequence[str]) -> Verdict:
    return Verdict(holds=None, said=f"{said}; {', '.join(away)} did not answer", advice=ASK_AGAIN)


def _named(places: Sequence[Place]) -> str:
    return ", ".join(f"{place.what} ({place.machine or 'machine not known'})" for place in places) or "none"
