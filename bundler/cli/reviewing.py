"""The command for whoever must approve what crosses: report."""

from datetime import UTC, datetime
from pathlib import Path

import click

from bundler.cli.shared import PATH, answer, command, evidence_option, json_option, progress, volumes_option
from manifests.errors import UsageError


@command("report")
@click.argument("bundle", type=PATH)
@click.option("--output", type=PATH, required=True, metavar="DIR", help="Where report.html and report.json go.")
@click.option("--base", type=PATH, metavar="OLD", help="An earlier bundle, or its manifest.json: say what changed.")
@click.option("--trust", type=PATH, metavar="FILE", help="allowed_signers of whoever signed it: verify the signature.")
@click.option("--audit", is_flag=True, help="Ask pip-audit for known vulnerabilities; needs a network.")
@click.option("--language", type=click.Choice(["en", "ko"]), default="en", show_default=True, help="Shown first.")
@evidence_option
@volumes_option
@json_option
def report(
    bundle: Path,
    output: Path,
    base: Path | None,
    trust: Path | None,
    volumes: tuple[Path, ...],
    *,
    evidence: Path | None,
    language: str,
    audit: bool,
    as_json: bool,
) -> None:
    """Say what is in BUNDLE, for whoever must approve it: one page, and its data."""
    from bundler.review.audit import PipAudit
    from bundler.review.diff import load_described
    from bundler.review.report import ReportOptions, make_report
    from bundler.review.reportpage import write_report
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium
    from manifests.sources import Supply
    from manifests.trust import parse_allowed_signers

    if trust is not None and not trust.is_file():
        raise UsageError(f"{trust}: no such allowed_signers file", hint="bundler keygen writes PATH.allowed_signers")
    supply = Supply(folders=volumes)
    options = ReportOptions(
        now=datetime.now(UTC),
        base=load_described(base) if base is not None else None,
        trust=parse_allowed_signers(trust.read_text(encoding="utf-8"), where=str(trust)) if trust else None,
        auditor=PipAudit() if audit else None,
        supply=supply,
        evidence=evidence,
    )
    with open_medium(bundle, supply) as medium:
        total = parse_manifest(medium.manifest_bytes).payload_size
    with progress("report")(total) as shown:
        made = make_report(bundle, options, shown)
    page, data = write_report(made, output, "ko" if language == "ko" else "en")
    document = {"page": str(page), "data": str(data), "problem": made.worst.message if made.worst else ""}
    answer(document, f"{page}\n{data}", as_json=as_json)
    if made.worst is not None:
        raise made.worst
