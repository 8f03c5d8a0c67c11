"""A squarified treemap (Bruls, Huizing, van Wijk 2000): areas in proportion to sizes, as nearly square as they get."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A rectangle: the index of its size in what was given, left upper corner, width and height."""

    index: int
    x: float
    y: float
    width: float
    height: float


def squarify(sizes: Sequence[int], width: float, height: float) -> Iterator[Cell]:
    """Yield a cell for each size above 0, largest first, that fill ``width`` times ``height`` together."""
    order = sorted((index for index, size in enumerate(sizes) if size > 0), key=lambda index: (-sizes[index], index))
    total = sum(sizes[index] for index in order)
    areas = [(index, sizes[index] / total * width * height) for index in order] if total else []
    x, y = 0.0, 0.0
    while areas:
        side = min(width, height)
        row = _best_row([area for _, area in areas], side)
        taken, areas = areas[:row], areas[row:]
        depth = sum(area for _, area in taken) / side if side else 0.0
        along = 0.0
        for index, area in taken:
            length = area / depth if depth else 0.0
            if width >= height:
                yield Cell(index=index, x=x, y=y + along, width=depth, height=length)
            else:
                yield Cell(index=index, x=x + along, y=y, width=length, height=depth)
            along += length
        if width >= height:
            x, width = x + depth, max(0.0, width - depth)
        else:
            y, height = y + depth, max(0.0, height - depth)


def _best_row(areas: Sequence[float], side: float) -> int:
    """Return how many areas go side by side before the worst of them would become less square."""
    total, best = 0.0, float("inf")
    for count, area in enumerate(areas):
        total += area
        worst = _worst_ratio(total, areas[0], area, side)
        if count and worst > best:
            return count
        best = worst
    return len(areas)


def _worst_ratio(total: float, largest: float, smallest: float, side: float) -> float:
    if not (side and total and smallest):
        return float("inf")
    return max(side * side * largest / (total * total), total * total / (side * side * smallest))
