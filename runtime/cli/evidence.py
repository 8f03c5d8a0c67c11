"""What an operator shows to others: the go-live report, the support file; and completion for the shell."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import IntegrityError, UsageError
from runtime.cli.auditing import noted
from runtime.cli.shared import Commands, add_command, add_prefix, answer, say
from runtime.cli.trusting import choose_trust

if TYPE_CHECKING:
    from runtime.cli.trusting import TrustChoice
    from runtime.layout import Prefix
    from runtime.preflight import Check
    from runtime.verify import ReleaseReport, VerifyOptions


def add_evidence_commands(commands: Commands) -> None:
    """Add them to the parser."""
    text = "Write one redacted text file with what a colleague outside would ask for, and a summary to retype."
    parser = add_command(commands, "support", text)
    add_prefix(parser, required=False)
    parser.add_argument("--check", type=Path, metavar="FILE", help="say where a summary was mistyped, instead")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default: print it)")
    parser.set_defaults(command=_support)
    text = 'Print a completion script: eval "$(runtime completion bash)".'
    shell = commands.add_parser("completion", help=text, description=text)
    shell.add_argument("shell", choices=("bash", "zsh"))
    shell.set_defaults(command=_completion)


def check_lines(checks: "Sequence[Check]") -> list[str]:
    """Return the host's table for people: a line a row, and below it what to do where it isn't ok."""
    width = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    for check in checks:
        lines.append(f"{check.verdict:8} {check.name:{width}} found {check.found}, needed {check.needed}")
        lines += [f"{'':8} {'':{width}} to do: {check.remedy}"] if check.remedy else []
    return lines


def verify_prefix(arguments: argparse.Namespace) -> int:
    """Run ``runtime verify --prefix``; return the code of the gravest finding."""
    from manifests.progress import ProgressBar
    from runtime.layout import Prefix
    from runtime.state import record
    from runtime.verify import checked_size, verify_release

    prefix = Prefix(path=arguments.prefix.absolute())
    release = prefix.require_live()
    chosen = choose_trust(arguments, prefix)
    if arguments.verify_time is not None:
        record(prefix, f"verify {release.name}: {chosen.time.note}")
    source = str(arguments.trust) if arguments.trust else "the prefix itself (no --trust was given)"
    started = datetime.now(UTC)
    options = _options(arguments, prefix, chosen, source)
    with ProgressBar("verify", checked_size(release, options.depth), sys.stderr) as progress:
        found = verify_release(prefix, release, options, progress, lambda step: say(f"... {step}"))
    noted(arguments, release=release.name, digest=found.digest, detail=_findings(found))
    document: dict[str, object] = {"release": release.name, "digest": found.digest, "trust": source}
    document |= {"sections": _section_rows(found), "exit_code": found.exit_code}
    lines = [f"{release.name}: {'good' if not found.exit_code else 'NOT good'}, trust from {source}"]
    lines += _section_lines(found)
    if arguments.report is not None:
        filed = _file(arguments, prefix, found, started, chosen.time.note)
        document["report"] = [str(path) for path in filed]
        lines += [f"report: {path}" for path in filed]
    answer(arguments, document, lines)
    return found.exit_code


def _options(arguments: argparse.Namespace, prefix: "Prefix", chosen: "TrustChoice", source: str) -> "VerifyOptions":
    from runtime.hostchecks import HostQuestions
    from runtime.state import load_state
    from runtime.verify import VerifyOptions

    state = load_state(prefix)
    questions = HostQuestions(
        now=datetime.now(UTC),
        service_user=arguments.service_user,
        installed=True,
        newest=state.created if state else "",
    )
    return VerifyOptions(
        trust=chosen.trust,
        trust_source=source,
        now=chosen.time.now,
        threshold=arguments.signatures,
        depth="quick" if arguments.quick else "deep" if arguments.deep else "normal",
        models=not (arguments.no_models or arguments.quick),
        questions=questions if arguments.report is not None else None,
    )


def _section_rows(found: "ReleaseReport") -> list[dict[str, object]]:
    return [
        {"name": s.name, "checked": s.checked, "problems": list(s.problems), "seconds": round(s.seconds, 2)}
        for s in found.sections
    ]


def _section_lines(found: "ReleaseReport") -> list[str]:
    lines: list[str] = []
    for section in found.sections:
        verdict = "FAILED" if section.problems else "ok"
        lines.append(f"{verdict:8} {section.name:10} {section.checked} ({section.seconds:.1f} s)")
        lines += [f"         {problem}" for problem in section.problems]
    return lines


def _findings(found: "ReleaseReport") -> str:
    """Return the sections with findings, for the audit log: how many each."""
    return ", ".join(f"{s.name}: {len(s.problems)} findings" for s in found.sections if s.problems)


def _file(
    arguments: argparse.Namespace, prefix: "Prefix", found: "ReleaseReport", started: datetime, note: str
) -> tuple[Path, Path]:
    from runtime.report import Circumstances, file_report, report_document, report_name

    circumstances = Circumstances(
        depth="quick" if arguments.quick else "deep" if arguments.deep else "normal",
        started=started,
        ended=datetime.now(UTC),
        signatures=arguments.signatures,
        time_note=note,
    )
    document = report_document(prefix, found, circumstances)
    filed = file_report(document, arguments.report, report_name(found, started))
    return filed.data, filed.page


def _support(arguments: argparse.Namespace) -> int:
    from manifests.files import write_atomic
    from runtime.layout import Prefix
    from runtime.support import support_text

    if (arguments.check is None) == (arguments.prefix is None):
        raise UsageError("support takes --prefix DIR or --check FILE, one of the two", hint="runtime support --help")
    if arguments.check is not None:
        return _check_summary(arguments)
    found = support_text(Prefix(path=arguments.prefix.absolute()), now=datetime.now(UTC))
    if arguments.output is not None:
        write_atomic(arguments.output.absolute(), found.text.encode("utf-8"))
    document: dict[str, object] = {"summary": list(found.summary), "text": found.text}
    shown = [found.text.rstrip("\n")] if arguments.output is None else [*found.summary, f"written: {arguments.output}"]
    answer(arguments, document | {"output": str(arguments.output) if arguments.output else None}, shown)
    return 0


def _check_summary(arguments: argparse.Namespace) -> int:
    from runtime.support import check_summary

    try:
        text = arguments.check.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{arguments.check}: can't be read as text") from None
    problems = check_summary(text)
    answer(arguments, {"problems": problems}, problems or ["every line is as it was printed"])
    return IntegrityError.exit_code if problems else 0


def _completion(arguments: argparse.Namespace) -> int:
    from runtime.cli import build_parser
    from runtime.cli.completion import bash_script, zsh_script

    parser = build_parser()
    print(bash_script(parser) if arguments.shell == "bash" else zsh_script(parser), end="")
    return 0
