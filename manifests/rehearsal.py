"""What a rehearsal imports, which attempts at the network are excused, how far 8-bit numbers are from exact ones.

It is ``launch.rehearsal`` of the manifest, and a table of the lock.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from manifests.canonical import Json
from manifests.errors import IntegrityError, SealiftError
from manifests.fields import Fields

REHEARSAL_KEY: Final = "rehearsal"
MODULE_PATTERN: Final = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_NUMBER: Final = r"-?[0-9]\.[0-9]{1,9}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedAttempt:
    """An attempt at the network that may be: to hosts like ``host`` (a glob), from a top-level ``module``, and why.

    An empty ``module`` is any. It is only excused: nothing is ever let through.
    """

    host: str
    module: str
    why: str

    def covers(self, address: str, callers: Sequence[str]) -> bool:
        """Whether it excuses an attempt; callers are ``file:line in function``, files as seen from site-packages."""
        name = address.rpartition(":")[0] if address.count(":") == 1 else address
        if not any(fnmatch.fnmatchcase(text, self.host) for text in (name, address)):
            return False
        return not self.module or any(
            self.module in re.split(r"[/\\]|\.py:", caller.partition(" in ")[0]) for caller in callers
        )

    def to_json(self) -> dict[str, Json]:
        """Return the object of lock and manifest."""
        return {"host": self.host, "module": self.module, "why": self.why}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAgreement:
    """How a model's 8-bit vectors agree with its exact ones, as it was measured when its answers were recorded.

    ``texts`` is how many were compared; the cosines are of a text's two vectors, as decimal text; ``overlap`` is the
    mean share of a text's ``top`` nearest others that both have in common, empty for fewer than two texts.
    """

    texts: int
    cosine_min: str
    cosine_mean: str
    top: int = 0
    overlap: str = ""

    @property
    def words(self) -> str:
        """What a person reads of it."""
        near = f", {self.overlap} of the nearest {self.top} in common" if self.overlap else ""
        return f"{self.texts} texts, cosine at least {self.cosine_min}, on average {self.cosine_mean}{near}"

    def to_json(self) -> dict[str, Json]:
        """Return the object of lock, manifest and evidence."""
        return {
            "cosine_mean": self.cosine_mean,
            "cosine_min": self.cosine_min,
            "overlap": self.overlap or None,
            "texts": self.texts,
            "top": self.top,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalPlan:
    """``imports``: distribution -> the modules of it that are imported; ``allowed``: what of the network is excused.

    ``agreement``: model -> how far its 8-bit numbers are from the exact ones, of those whose settings say ``int8``.
    """

    imports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allowed: tuple[AllowedAttempt, ...] = ()
    agreement: Mapping[str, RecordedAgreement] = field(default_factory=dict)

    @property
    def modules(self) -> tuple[str, ...]:
        """Every module, in order, once."""
        return tuple(dict.fromkeys(name for names in self.imports.values() for name in names))

    def distribution_of(self, module: str) -> str:
        """Return the distribution that a module is listed for, empty for none."""
        return next((name for name, modules in self.imports.items() if module in modules), "")

    def reason_for(self, address: str, callers: Sequence[str]) -> str:
        """Return why an attempt is excused, empty where it isn't."""
        return next((item.why for item in self.allowed if item.covers(address, callers)), "")

    def to_json(self) -> dict[str, Json]:
        """Return the object of lock and manifest; empty where there is nothing to say."""
        values: dict[str, Json] = {
            "agreement": {name: item.to_json() for name, item in sorted(self.agreement.items())},
            "allow-network": [item.to_json() for item in self.allowed],
            "imports": {name: list(modules) for name, modules in sorted(self.imports.items())},
        }
        return {key: value for key, value in values.items() if value}


def parse_plan(data: object, where: str, error: type[SealiftError] = IntegrityError) -> RehearsalPlan:
    """Parse what :meth:`RehearsalPlan.to_json` returned; ``where`` begins every message.

    Raises:
        SealiftError: Of class ``error``: a key is unknown, missing or of the wrong type.
    """
    fields = Fields(data, where=where, known=("agreement", "allow-network", "imports"), error=error)
    raw = fields.mapping("imports")
    imports = Fields(raw, where=fields.path("imports"), known=tuple(raw), error=error)
    measured, place = fields.mapping("agreement"), fields.path("agreement")
    return RehearsalPlan(
        agreement={name: parse_agreement(item, f"{place}.{name}", error=error) for name, item in measured.items()},
        imports={name: imports.texts(name) for name in raw},
        allowed=tuple(parse_allowed(item, path, error=error) for path, item in fields.items("allow-network")),
    )


def parse_allowed(item: object, where: str, *, error: type[SealiftError] = IntegrityError) -> AllowedAttempt:
    """Parse one allowed attempt; ``host`` or ``module`` may be left out, not both, and ``why`` never.

    Raises:
        SealiftError: Of class ``error``.
    """
    fields = Fields(item, where=where, known=("host", "module", "why"), error=error)
    host, module = fields.text("host", ""), fields.text("module", "")
    if not host and not module:
        raise fields.fail("host", "expected a host, a module, or both")
    if not fields.text("why").strip():
        raise fields.fail("why", "say why it may be")
    return AllowedAttempt(host=host or "*", module=module, why=fields.text("why"))


def parse_agreement(item: object, where: str, *, error: type[SealiftError] = IntegrityError) -> RecordedAgreement:
    """Parse what :meth:`RecordedAgreement.to_json` returned.

    Raises:
        SealiftError: Of class ``error``.
    """
    known = ("cosine_mean", "cosine_min", "overlap", "texts", "top")
    fields = Fields(item, where=where, known=known, error=error)
    return RecordedAgreement(
        texts=fields.integer("texts", least=1),
        cosine_min=fields.text("cosine_min", pattern=_NUMBER),
        cosine_mean=fields.text("cosine_mean", pattern=_NUMBER),
        top=fields.integer("top"),
        overlap="" if fields.raw("overlap") is None else fields.text("overlap", pattern=_NUMBER),
    )


def declares_int8(settings: Mapping[str, Json]) -> bool:
    """Whether a model's settings ask for 8-bit numbers, at the top or under one of the headings that group them."""
    groups = (value for value in settings.values() if isinstance(value, Mapping))
    return any(group.get("int8") is True for group in (settings, *groups))


def plan_of(launch: Mapping[str, Json]) -> RehearsalPlan:
    """Return the plan of a manifest's ``launch``; an empty one where it has none.

    Raises:
        IntegrityError: It is malformed.
    """
    return parse_plan(launch.get(REHEARSAL_KEY, {}), f"manifest.json: launch.{REHEARSAL_KEY}")
