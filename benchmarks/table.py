"""Rows of the result, each with its goal, and how they are printed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

Sense: TypeAlias = Literal["at least", "at most"]

_COLUMNS: Final = ("row", "ours", "against", "peer", "measured", "goal", "stand")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: what was measured against what, and the goal it is held to.

    ``value`` is compared with ``goal``: ``at least`` or ``at most`` that many of ``unit``. ``ours`` and ``peer`` are
    what the value was made from, as text. ``value`` None means not measured, and ``note`` says why.
    """

    name: str
    against: str
    ours: str
    peer: str
    value: float | None
    unit: Literal["x", "s", "ms", "MB"]
    sense: Sense
    goal: float
    note: str = ""

    @property
    def stand(self) -> str:
        """``met``, ``not met`` or ``skipped``."""
        if self.value is None:
            return "skipped"
        good = self.value >= self.goal if self.sense == "at least" else self.value <= self.goal
        return "met" if good else "NOT met"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's text, by column."""
        sign = ">=" if self.sense == "at least" else "<="
        measured = "-" if self.value is None else _number(self.value, self.unit)
        goal = f"{sign} {self.goal:g}{_gap(self.unit)}"
        return (self.name, self.ours, self.against, self.peer, measured, goal, self.stand)

    def to_json(self) -> dict[str, object]:
        """The row with its verdict."""
        return {**asdict(self), "stand": self.stand}


def render_table(rows: Sequence[Row]) -> str:
    """Return the table, and the notes below it."""
    lines = [_COLUMNS, *(row.cells for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(_COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*text, *([""] if notes else []), *notes])


def duration(seconds: float) -> str:
    """Return a duration with three significant digits."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def megabytes(count: float) -> str:
    """Return bytes as decimal megabytes."""
    return f"{count / 1e6:.0f} MB"


def _number(value: float, unit: str) -> str:
    digits = f"{value:.2f}" if unit in {"x", "s"} else f"{value:.0f}"
    return f"{digits}{_gap(unit)}"


def _gap(unit: str) -> str:
    return unit if unit == "x" else f" {unit}"
