"""Known vulnerabilities, asked of pip-audit and its own service; never unless somebody asked for it."""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from packaging.version import InvalidVersion, Version

from bundler.findings import Finding
from bundler.process import run_program
from manifests.errors import SourceError

_LONGEST: Final = 300


class Auditor(Protocol):
    """Who knows vulnerabilities."""

    def audit(self, packages: Mapping[str, str]) -> tuple[Finding, ...]:
        """Return what is known of packages, name -> version.

        Raises:
            SourceError: It can't be asked, or has no answer.
        """


class PipAudit:
    """pip-audit as it is installed beside this Sealift."""

    def audit(self, packages: Mapping[str, str]) -> tuple[Finding, ...]:
        if importlib.util.find_spec("pip_audit") is None:
            raise SourceError("pip-audit is not installed here", hint="pip install pip-audit, then once more")
        with tempfile.TemporaryDirectory() as folder:
            requirements = Path(folder) / "requirements.txt"
            requirements.write_text("".join(f"{name}=={_public(number)}\n" for name, number in packages.items()))
            options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
            done = run_program([sys.executable, "-m", "pip_audit", "-r", requirements, *options])
        return tuple(parse_answer(done.output, done.errors))


def parse_answer(text: str, complaint: str = "") -> Iterator[Finding]:
    """Yield what pip-audit's JSON lists.

    Raises:
        SourceError: It isn't that.
    """
    try:
        found = [
            (str(item["id"]), str(package["name"]), str(package["version"]), str(item.get("description") or ""))
            for package in json.loads(text)["dependencies"]
            for item in package.get("vulns", ())
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        last = complaint.strip().splitlines()[-1:] or ["no answer"]
        raise SourceError(f"pip-audit gave no answer: {last[0][:_LONGEST]}") from None
    for identifier, name, number, text_ in found:
        detail = " ".join(text_.split())[:_LONGEST]
        yield Finding(kind="vulnerabilities", what=f"{identifier} {name}=={number}", detail=detail)


def _public(number: str) -> str:
    try:
        return Version(number).public
    except InvalidVersion:
        return number
