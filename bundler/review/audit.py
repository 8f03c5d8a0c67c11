"""Known vulnerabilities, asked of pip-audit and its own service; never unless somebody asked for it."""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from packaging.version import InvalidVersion, Version

from bundler.process import run_program
from bundler.review.findings import Finding
from manifests.errors import SourceError

_LONGEST: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """An answer: what is known, and which packages (``NAME: WHY``) nobody could say anything about."""

    findings: tuple[Finding, ...] = ()
    unanswered: tuple[str, ...] = ()


class Auditor(Protocol):
    """Who knows vulnerabilities."""

    def audit(self, packages: Mapping[str, str]) -> Audit:
        """Return what is known of packages, name -> version.

        Raises:
            SourceError: It can't be asked, or has no answer.
        """


class PipAudit:
    """pip-audit as it is installed beside this Sealift."""

    def audit(self, packages: Mapping[str, str]) -> Audit:
        if importlib.util.find_spec("pip_audit") is None:
            raise SourceError("pip-audit is not installed here", hint="pip install pip-audit, then once more")
        with tempfile.TemporaryDirectory() as folder:
            requirements = Path(folder) / "requirements.txt"
            requirements.write_text("".join(f"{name}=={_public(number)}\n" for name, number in packages.items()))
            options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
            done = run_program([sys.executable, "-m", "pip_audit", "-r", requirements, *options])
        return parse_answer(done.output, done.errors)


def parse_answer(text: str, complaint: str = "") -> Audit:
    """Return what pip-audit's JSON says; a package that it skipped wasn't checked.

    Raises:
        SourceError: It isn't that.
    """
    try:
        packages = json.loads(text)["dependencies"]
        skipped = [
            f"{package['name']}: {_line(package['skip_reason'])}" for package in packages if "skip_reason" in package
        ]
        found = [
            _finding(package, item) for package in packages if "skip_reason" not in package for item in package["vulns"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        last = complaint.strip().splitlines()[-1:] or ["it wrote nothing"]
        raise SourceError(f"pip-audit gave no answer: {_line(last[0])}") from None
    return Audit(findings=tuple(found), unanswered=tuple(skipped))


def _finding(package: Mapping[str, object], item: Mapping[str, object]) -> Finding:
    what = f"{item['id']} {package['name']}=={package['version']}"
    return Finding(kind="vulnerabilities", what=what, detail=_line(item.get("description") or ""))


def _line(text: object) -> str:
    return " ".join(str(text).split())[:_LONGEST]


def _public(number: str) -> str:
    try:
        return Version(number).public
    except InvalidVersion:
        return number
