"""The posture drawn: thirteen weeks of each database as a calendar, and how long its recoveries took.

Signs are those of the strip, and colours are told apart by everyone (Okabe and Ito's). matplotlib is large,
so it is loaded where something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING

from backup_dag.core.in_words import length
from backup_dag.core.watching.posture import DatabasePosture, Posture, Recovery
from backup_dag.core.watching.strip import FAILED, LATE, NONE, PROVEN, UNPROVEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 20
"""Databases that are drawn; more are counted."""

_SIGNS = (NONE, PROVEN, UNPROVEN, FAILED, LATE)
_NAMES = ("none", "proven by a restore", "not yet proven", "failed", "late")
_COLOURS = ("#e8e8e8", "#009e73", "#9fd3f2", "#d55e00", "#f0c24b")
_MARKS = (
    (".", "#888888"),
    ("o", "white"),
    ("o", "#0b4f77"),
    (r"$\mathrm{!}$", "white"),
    (r"$\mathrm{l}$", "#4d3800"),
)
_WIDTH, _ROW, _DPI = 9.6, 1.45, 100  # inches, inches a database, dots an inch
_HEAD, _FOOT = 0.35, 0.75  # inches
_GREY = "#555555"
_TICKS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 21_600: "6 h", 86_400: "1 d"}
_PALETTE = 64  # colours: a third of the bytes, and nobody sees it


def png(found: Posture) -> bytes:
    """A row for each database, MOST of them at most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    shown = found.databases[:MOST]
    high = _HEAD + _ROW * max(1, len(shown)) + _FOOT
    figure = Figure(figsize=(_WIDTH, high), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        max(1, len(shown)),
        2,
        width_ratios=(1.15, 1),
        left=0.075,
        right=0.985,
        top=1 - _HEAD / high,
        bottom=_FOOT / high,
        hspace=0.62,
        wspace=0.2,
    )
    for at, each in enumerate(shown):
        _calendar(figure.add_subplot(grid[at, 0]), each)
        _trend(figure.add_subplot(grid[at, 1]), each, found)
    _legend(figure, high, len(found.databases) - len(shown))
    pixels, drawn = BytesIO(), BytesIO()
    canvas.print_rgba(pixels)  # type: ignore[no-untyped-call]
    image = Image.frombytes("RGBA", canvas.get_width_height(), pixels.getvalue()).convert("RGB")
    image.quantize(_PALETTE, dither=Image.Dither.NONE).save(drawn, "png", optimize=True)
    return drawn.getvalue()


def _calendar(axes: Axes, of: DatabasePosture) -> None:
    """A column a week, Monday on top; the sign in each day is the strip's."""
    from matplotlib.colors import ListedColormap
    from numpy import full, ma, nan

    first = of.last_day - timedelta(days=len(of.calendar) - 1)
    offset = first.weekday()
    weeks = -(-(offset + len(of.calendar)) // 7)
    cells = full((7, weeks), nan)
    for at, sign in enumerate(of.calendar, start=offset):
        cells[at % 7, at // 7] = _SIGNS.index(sign)
    axes.pcolormesh(
        ma.masked_invalid(cells),
        cmap=ListedColormap(_COLOURS),
        vmin=-0.5,
        vmax=len(_SIGNS) - 0.5,
        edgecolors="white",
        linewidth=1.5,
    )
    for sign, (mark, colour) in zip(_SIGNS, _MARKS, strict=True):
        days = [at for at, each in enumerate(of.calendar, start=offset) if each == sign]
        axes.scatter(
            [at // 7 + 0.5 for at in days],
            [at % 7 + 0.5 for at in days],
            marker=mark,
            s=5 if sign == NONE else 18,
            facecolors="none" if sign == UNPROVEN else colour,
            edgecolors=colour,
            linewidths=1 if sign == UNPROVEN else 0.4,
        )
    axes.invert_yaxis()
    axes.set_yticks([0.5, 3.5, 6.5], ["Mon", "Thu", "Sun"])
    axes.set_xticks(*_months(first - timedelta(days=offset), weeks))
    _plain(axes, f"{of.database}, the weeks up to {of.last_day}", of.not_asked)


def _months(monday: date, weeks: int) -> tuple[list[float], list[str]]:
    """Where a month begins, and its name; one that begins in the last week has no room."""
    mondays = [monday + timedelta(weeks=n) for n in range(weeks)]
    begins = [n for n in range(weeks) if n == 0 or mondays[n].month != mondays[n - 1].month]
    if len(begins) > 1 and begins[1] < 2:
        begins = begins[1:]
    return [n + 0.5 for n in begins], [f"{mondays[n]:%b}" for n in begins]


def _trend(axes: Axes, of: DatabasePosture, found: Posture) -> None:
    """Each recovery by its end and length, on a scale on which seconds and hours are both seen."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    target = found.rto_target_seconds
    for what, mark, filled in (("drill", "o", True), ("restore", "s", False)):
        those = [each for each in of.recoveries if each.what == what]
        _line(axes, those, mark, filled=filled)
    seconds = [max(0.1, each.seconds) for each in of.recoveries]
    axes.set_yscale("log")
    low, high = min([*seconds, target]) / 3, max([*seconds, target]) * 3
    axes.set_ylim(low, high)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [_TICKS[tick] for tick in ticks])
    axes.minorticks_off()
    axes.axhline(target, color="#d55e00", linewidth=1.1, linestyle="--")
    axes.annotate(
        f"RTO {length(target)}",
        (1, target),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 2),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
        color="#a34700",
    )
    axes.set_xlim(*_span(of, found.made))  # type: ignore[arg-type]  # dates are among what it takes
    locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    last = f", last {length(of.last_recovery.seconds)}" if of.last_recovery else ": never measured"
    _plain(axes, f"recovery time{last}", [])
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _line(axes: Axes, those: Sequence[Recovery], mark: str, *, filled: bool) -> None:
    colour = "#0072b2" if filled else "#555555"
    axes.plot(
        [each.time for each in those],  # type: ignore[arg-type]  # likewise
        [max(0.1, each.seconds) for each in those],
        marker=mark,
        markersize=4.5,
        linewidth=1.2,
        linestyle="-" if filled else ":",
        color=colour,
        markerfacecolor=colour if filled else "white",
    )


def _span(of: DatabasePosture, now: datetime) -> tuple[datetime, datetime]:
    """The calendar's weeks, or further back where a recovery lies there."""
    since = min([now - timedelta(days=len(of.calendar)), *(each.time for each in of.recoveries)])
    return since - timedelta(days=2), now + timedelta(days=2)


def _plain(axes: Axes, title: str, not_asked: Sequence[str]) -> None:
    unsure = f"   ({', '.join(not_asked)} not asked)" if not_asked else ""
    axes.set_title(title + unsure, fontsize=9, loc="left", pad=4, color="#222222")
    axes.tick_params(length=0, labelsize=7.5, labelcolor=_GREY)
    for edge in axes.spines.values():
        edge.set_visible(False)


def _legend(figure: Figure, high: float, more: int) -> None:
    from matplotlib.lines import Line2D

    days = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="s",
            markersize=8,
            markerfacecolor=colour,
            markeredgecolor="#999999",
            markeredgewidth=0.4,
            label=f"{sign} {name}",
        )
        for sign, name, colour in zip(_SIGNS, _NAMES, _COLOURS, strict=True)
    ]
    drills = Line2D([], [], marker="o", markersize=4.5, color="#0072b2", label="drill")
    restores = Line2D([], [], marker="s", markersize=4.5, color="#555555", label="restore")
    restores.set(markerfacecolor="white", linestyle=":")
    figure.legend(
        handles=[*days, drills, restores],
        loc="lower center",
        ncols=7,
        fontsize=8,
        frameon=False,
        bbox_to_anchor=(0.5, 0.1 / high),
        columnspacing=1.4,
        handletextpad=0.5,
    )
    if more > 0:
        figure.text(0.985, 0.04 / high, f"… and {more} more", ha="right", fontsize=8, color=_GREY)
