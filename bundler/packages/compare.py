"""Where two resolvers differ about one spec."""

from collections.abc import Iterable
from dataclasses import dataclass

from bundler.lock import Lock
from bundler.packages.closure import kept_versions
from bundler.packages.requirements import collect_requirements
from bundler.packages.resolver import Pin, Resolution, Resolver
from bundler.relock import closure_roots
from bundler.spec import Spec
from manifests.canonical import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A package about which two resolvers differ; None where one of them has none of it."""

    name: str
    first: Pin | None
    second: Pin | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two resolutions of the same requirements, and where they differ, sorted by name."""

    first: Resolution
    second: Resolution
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Json]:
        """Return what ``--json`` prints."""
        differences: list[Json] = [
            {"name": item.name, "first": _pin_json(item.first), "second": _pin_json(item.second)}
            for item in self.differences
        ]
        return {
            "first": {"resolver": self.first.resolver, "packages": len(self.first.pins)},
            "second": {"resolver": self.second.resolver, "packages": len(self.second.pins)},
            "differences": differences,
        }

    def to_text(self) -> str:
        """Return what a person reads: a line for each difference, and a summary."""
        width = max((len(item.name) for item in self.differences), default=0)
        lines = [f"{item.name:{width}}  {_pin_text(item)}" for item in self.differences]
        counts = f"{self.first.resolver}: {len(self.first.pins)} packages; {self.second.resolver}: "
        verdict = f"{len(self.differences)} differ" if self.differences else "no difference"
        return "\n".join([*lines, f"{counts}{len(self.second.pins)} packages; {verdict}"])


def compare_resolvers(spec: Spec, first: Resolver, second: Resolver, *, previous: Lock | None = None) -> Comparison:
    """Resolve a spec's requirements twice; nothing is fetched, and no application is built.

    Args:
        spec: What a person wrote.
        first: Such as uv.
        second: Such as pip-tools.
        previous: A lock whose versions both keep where they satisfy.

    Raises:
        SourceError: One of them finds no solution.
        UsageError: One of them can't resolve for the target.
    """
    roots, constraints = closure_roots(spec), collect_requirements(spec).constraints
    keep = kept_versions(previous)
    one, other = (item.resolve(roots, spec.target, keep, constraints=constraints) for item in (first, second))
    return Comparison(first=one, second=other, differences=tuple(_differences(one.pins, other.pins)))


def _differences(first: Iterable[Pin], second: Iterable[Pin]) -> list[Difference]:
    one, other = {pin.name: pin for pin in first}, {pin.name: pin for pin in second}
    pairs = (Difference(name=name, first=one.get(name), second=other.get(name)) for name in sorted({*one, *other}))
    return [pair for pair in pairs if not _same(pair.first, pair.second)]


def _same(first: Pin | None, second: Pin | None) -> bool:
    return first is not None and second is not None and first.sha256 == second.sha256


def _pin_json(pin: Pin | None) -> Json:
    return {"version": pin.version, "filename": pin.filename, "sha256": pin.sha256} if pin else None


def _pin_text(item: Difference) -> str:
    first, second = item.first, item.second
    if first and second and first.version == second.version:
        texts = [
            pin.filename if first.filename != second.filename else f"sha256 {pin.sha256}" for pin in (first, second)
        ]
    else:
        texts = [pin.version if pin else "not there" for pin in (first, second)]
    return " | ".join(texts)
