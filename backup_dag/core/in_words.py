"""How sizes and lengths of time are said to people: the same everywhere."""

from datetime import timedelta


def size(count: int) -> str:
    """Bytes, in powers of ten."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def length(time: timedelta | float) -> str:
    """A length of time (seconds, where it is a number), in the largest unit of which there are two."""
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    for unit, long in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.0f} {unit}"
    return f"{max(0, seconds):.0f} s" if seconds >= 1 else "1 s"
