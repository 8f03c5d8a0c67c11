"""What a rehearsal imports, and which attempts at the network its builder allowed: ``launch.rehearsal``."""

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
class RehearsalPlan:
    """``imports``: distribution -> the modules of it that are imported; ``allowed``: what of the network is excused."""

    imports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allowed: tuple[AllowedAttempt, ...] = ()

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
            "allow-network": [item.to_json() for item in self.allowed],
            "imports": {name: list(modules) for name, modules in sorted(self.imports.items())},
        }
        return {key: value for key, value in values.items() if value}


def parse_plan(data: object, where: str, error: type[SealiftError] = IntegrityError) -> RehearsalPlan:
    """Parse what :meth:`RehearsalPlan.to_json` returned; ``where`` begins every message.

    Raises:
        SealiftError: Of class ``error``: a key is unknown, missing or of the wrong type.
    """
    fields = Fields(data, where=where, known=("allow-network", "imports"), error=error)
    raw = fields.mapping("imports")
    imports = Fields(raw, where=fields.path("imports"), known=tuple(raw), error=error)
    return RehearsalPlan(
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


def plan_of(launch: Mapping[str, Json]) -> RehearsalPlan:
    """Return the plan of a manifest's ``launch``; an empty one where it has none.

    Raises:
        IntegrityError: It is malformed.
    """
    return parse_plan(launch.get(REHEARSAL_KEY, {}), f"manifest.json: launch.{REHEARSAL_KEY}")
