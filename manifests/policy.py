"""The signed policy: what is refused, what is allowed, and the exceptions that a person put in writing.

Both sides read it: the builder's refuses to make a bundle, the reviewer's report says what was decided, and the closed
side enforces it again. Time is the manifest's own ``created``, so that every one of them decides alike, clock or not.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal, TypeAlias, cast

from manifests.canonical import Json
from manifests.errors import IntegrityError, SealiftError
from manifests.fields import Fields

Action: TypeAlias = Literal["refuse", "allow"]
Verdict: TypeAlias = Literal["refused", "allowed", "waived"]

CLASSES: Final[Mapping[str, Action]] = {
    "pickle": "refuse",
    "remote-code": "refuse",
    "auto-map": "allow",
    "native-code": "allow",
    "built-from-source": "allow",
    "license": "refuse",
    "unknown-license": "allow",
    "secrets": "refuse",
    "undeclared": "refuse",
    "vulnerabilities": "allow",
}
"""Class of finding -> what happens where a policy says nothing. ``license`` finds nothing without ``licenses``.

``auto-map`` are words in a model's files that name code: harmless while nothing runs code from a folder, as here.
"""

WAIVER_KEYS: Final = ("class", "until", "what", "who", "why")
CODE_SUFFIXES: Final = (".py", ".pyc", ".so")
"""Names in a model's folder that count as code."""
_DATE: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """A written exception. ``what`` is a glob over what a finding is about; ``until`` the last day that it holds."""

    kind: str
    what: str
    who: str
    why: str
    until: str

    def covers(self, kind: str, what: str) -> bool:
        """Whether it is about this finding; ``*`` in a glob also stands for ``/``."""
        return kind == self.kind and fnmatch.fnmatchcase(what, self.what)

    def holds(self, created: str) -> bool:
        """Whether it had not run out at a manifest's time."""
        return created[:10] <= self.until

    def to_json(self) -> dict[str, Json]:
        """Return the object that stands in the spec, the lock and the manifest."""
        return {"class": self.kind, "until": self.until, "what": self.what, "who": self.who, "why": self.why}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A parsed policy. ``licenses`` is the allow-list of SPDX identifiers, None where any licence will do."""

    actions: Mapping[str, Action]
    licenses: tuple[str, ...] | None = None
    waivers: tuple[Waiver, ...] = ()

    def action(self, kind: str) -> Action:
        """Return what happens to a class of findings."""
        return self.actions.get(kind, CLASSES[kind])

    def judge(self, kind: str, what: str, created: str) -> tuple[Verdict, Waiver | None]:
        """Return what is decided about a finding at a manifest's time, and the waiver that decided it."""
        if self.action(kind) == "allow":
            return "allowed", None
        waiver = next((item for item in self.waivers if item.covers(kind, what) and item.holds(created)), None)
        return ("refused", None) if waiver is None else ("waived", waiver)

    def expired(self, created: str) -> tuple[Waiver, ...]:
        """Return the waivers that had run out at a manifest's time."""
        return tuple(waiver for waiver in self.waivers if not waiver.holds(created))


def parse_policy(
    document: Mapping[str, Json], *, where: str = "manifest.json: policy", error: type[SealiftError] = IntegrityError
) -> Policy:
    """Return the policy that a manifest, a lock or a spec states; keys that aren't its business are left alone.

    Raises:
        IntegrityError: A value isn't one that a policy can have (or ``error`` in its place).
    """
    fields = Fields(document, where=where, known=tuple(document), error=error)
    return Policy(
        actions={
            kind: cast("Action", fields.choice(kind, ("refuse", "allow"))) for kind in CLASSES if kind in document
        },
        licenses=fields.texts("licenses") if "licenses" in fields else None,
        waivers=tuple(parse_waiver(item, path, error=error) for path, item in fields.items("waiver")),
    )


def parse_waiver(item: object, where: str, *, error: type[SealiftError] = IntegrityError) -> Waiver:
    """Return one waiver.

    Raises:
        IntegrityError: A key is missing, unknown or empty, or the date is none (or ``error`` in its place).
    """
    fields = Fields(item, where=where, known=WAIVER_KEYS, error=error)
    waiver = Waiver(
        kind=fields.choice("class", tuple(CLASSES)),
        what=fields.text("what"),
        who=fields.text("who"),
        why=fields.text("why"),
        until=fields.text("until"),
    )
    for key in ("what", "who", "why"):
        if not fields.text(key).strip():
            raise fields.fail(key, "is empty: a waiver says what, who, why and until when")
    if not _is_date(waiver.until):
        raise fields.fail("until", f"{waiver.until[:80]!r} is not a day such as '2027-01-31'")
    return waiver


def _is_date(text: str) -> bool:
    try:
        return re.fullmatch(_DATE, text, re.ASCII) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False
