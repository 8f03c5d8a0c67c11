"""The command line of the closed side: options in, one library call, one answer out; imports are late, for speed."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from manifests import __version__
from manifests.errors import DiskError, SealiftError, TrustError, UsageError

if TYPE_CHECKING:
    from manifests.trust import TrustRoot


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status (design: 0 fine, 2 usage, 4 trust, 5 integrity, 6 host, 7 disk, ...)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments = build_parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except SealiftError as error:
        _say(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped: what was live stays live; run the same command again to go on")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from manifests.files import disk_error

        wrapped = disk_error(error, f"use {error.filename}" if error.filename else "go on")
        _say(wrapped.render())
        return DiskError.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="runtime", description="Verify, install and launch a Sealift bundle on a closed network."
    )
    parser.add_argument("--version", action="version", version=f"runtime {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_preflight(commands)
    _add_install(commands)
    _add_verify(commands)
    _add_launch(commands)
    _add_status(commands)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--version", action="version", version=f"runtime {__version__}")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _add_prefix(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--prefix", type=Path, required=required, metavar="DIR", help="where releases are installed")


def _add_trust(parser: argparse.ArgumentParser, *, required: bool) -> None:
    text = "OpenSSH allowed_signers file, which reached you by another way than the bundle"
    parser.add_argument("--trust", type=Path, required=required, metavar="ALLOWED_SIGNERS", help=text)
    parser.add_argument(
        "--signatures", type=_positive, default=1, metavar="N", help="distinct keys that must have signed"
    )


def _positive(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def _add_preflight(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "preflight", "Check whether this host fits a bundle; nothing is written.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    _add_prefix(parser, required=False)
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python to make the environment from")
    parser.set_defaults(command=_preflight)


def _add_install(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "install", "Verify a bundle and make it the live release of a prefix.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    _add_prefix(parser)
    _add_trust(parser, required=True)
    parser.add_argument("--allow-downgrade", action="store_true", help="accept a bundle older than what was installed")
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python to make the environment from")
    parser.add_argument("--no-smoke", action="store_true", help="skip the import test of the new environment")
    parser.set_defaults(command=_install)


def _add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "verify", "Verify a bundle on its medium, or the installed release before go-live.")
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE")
    _add_prefix(parser, required=False)
    _add_trust(parser, required=False)
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="sizes, times and inodes instead of digests (installed)")
    depth.add_argument("--deep", action="store_true", help="whole-file digests of chunked files too")
    parser.add_argument("--no-models", action="store_true", help="do not load the models (installed)")
    parser.set_defaults(command=_verify)


def _add_launch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "launch", "Serve the models of the live release over the OpenAI API.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="which models; all by default")
    _add_prefix(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.set_defaults(command=_launch)


def _add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "status", "Say what is installed, what is live, and what an installer left unfinished.")
    _add_prefix(parser)
    parser.set_defaults(command=_status)
    back = _add(commands, "rollback", "Make the release live again that was live before.")
    _add_prefix(back)
    back.set_defaults(command=_rollback)


def _preflight(arguments: argparse.Namespace) -> int:
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium
    from runtime.layout import Prefix
    from runtime.preflight import preflight, require

    with open_medium(arguments.bundle) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
    prefix = Prefix(path=(arguments.prefix or Path.cwd()).absolute())
    checks = preflight(manifest, prefix, python=arguments.python)
    rows = [{"check": c.name, "found": c.found, "needed": c.needed, "verdict": c.verdict} for c in checks]
    lines = [f"{c.verdict:8} {c.name:12} found {c.found}, needed {c.needed}" for c in checks]
    _print(arguments, {"bundle": manifest.stem, "trusted": False, "checks": rows}, lines)
    require(checks)
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from manifests.bundle import verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar
    from runtime.install import InstallOptions, install
    from runtime.layout import Prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    text = _read_trust(arguments.trust)
    options = InstallOptions(
        trust_text=text,
        allow_downgrade=arguments.allow_downgrade,
        python=arguments.python,
        smoke=not arguments.no_smoke,
    )
    with open_medium(arguments.bundle) as medium:
        trust = _parse_trust(text, arguments.trust)
        bundle = verify_trust(medium, trust, threshold=arguments.signatures, now=datetime.now(UTC))
        for signer in bundle.signers:
            _say(f"signed by {signer.principals} {signer.fingerprint}")
        with ProgressBar("copy and verify", bundle.manifest.payload_size, sys.stderr) as progress:
            done = install(bundle, prefix, options, progress, lambda step: _say(f"... {step}"))
    what = "is live" if done.changed else "was live already, nothing to do"
    document = {
        "release": done.release.name,
        "digest": bundle.digest,
        "path": str(done.release.path),
        "changed": done.changed,
    }
    _print(arguments, document, [f"{done.release.name} {what} ({done.release.path})"])
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    if (arguments.bundle is None) == (arguments.prefix is None):
        raise UsageError("verify takes a BUNDLE or --prefix DIR, one of the two", hint="runtime verify --help")
    return _verify_bundle(arguments) if arguments.bundle is not None else _verify_prefix(arguments)


def _verify_bundle(arguments: argparse.Namespace) -> int:
    from manifests.bundle import verify_content, verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar, format_size

    if arguments.trust is None:
        raise UsageError(
            "verify BUNDLE needs --trust ALLOWED_SIGNERS", hint="the file came with the kit, not the bundle"
        )
    trust = _parse_trust(_read_trust(arguments.trust), arguments.trust)
    with open_medium(arguments.bundle) as medium:
        bundle = verify_trust(medium, trust, threshold=arguments.signatures, now=datetime.now(UTC))
        manifest = bundle.manifest
        with ProgressBar("verify", manifest.payload_size, sys.stderr) as progress:
            verify_content(medium, manifest, progress, deep=arguments.deep)
    signers = [f"{signer.principals} {signer.fingerprint}" for signer in bundle.signers]
    document = {"bundle": manifest.stem, "digest": bundle.digest, "files": len(manifest.files), "signers": signers}
    size = format_size(manifest.payload_size)
    lines = [
        f"good: {manifest.stem}, {len(manifest.files)} files, {size}",
        f"manifest digest {bundle.digest}",
        *(f"signed by {signer}" for signer in signers),
    ]
    _print(arguments, document | {"size": manifest.payload_size}, lines)
    return 0


def _verify_prefix(arguments: argparse.Namespace) -> int:
    from manifests.progress import ProgressBar
    from runtime.install import TRUST_COPY
    from runtime.layout import Prefix
    from runtime.verify import VerifyOptions, verify_release

    prefix = Prefix(path=arguments.prefix.absolute())
    release = prefix.require_live()
    path = arguments.trust or prefix.etc / TRUST_COPY
    source = str(arguments.trust) if arguments.trust else "the prefix itself (no --trust was given)"
    depth = "quick" if arguments.quick else "deep" if arguments.deep else "normal"
    options = VerifyOptions(
        trust=_parse_trust(_read_trust(path), path),
        trust_source=source,
        now=datetime.now(UTC),
        threshold=arguments.signatures,
        depth=depth,
        models=not (arguments.no_models or arguments.quick),
    )
    with ProgressBar("verify", release.manifest().payload_size, sys.stderr) as progress:
        found = verify_release(prefix, release, options, progress, lambda step: _say(f"... {step}"))
    rows = [
        {"name": s.name, "checked": s.checked, "problems": list(s.problems), "seconds": round(s.seconds, 2)}
        for s in found.sections
    ]
    lines = [f"{release.name}: {'good' if not found.exit_code else 'NOT good'}, trust from {source}"]
    for section in found.sections:
        lines.append(
            f"{'FAILED' if section.problems else 'ok':8} {section.name:10} {section.checked} ({section.seconds:.1f} s)"
        )
        lines += [f"         {problem}" for problem in section.problems]
    document = {"release": release.name, "digest": found.digest, "trust": source, "sections": rows}
    _print(arguments, document | {"exit_code": found.exit_code}, lines)
    return found.exit_code


def _launch(arguments: argparse.Namespace) -> int:
    from runtime.launch import launch
    from runtime.layout import Prefix

    sys.stdout.flush()
    launch(Prefix(path=arguments.prefix.absolute()), arguments.models, host=arguments.host, port=arguments.port)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    live = prefix.live()
    releases = list(prefix.all_releases())
    states = {
        r.name: "live" if live and r.name == live.name else "installed" if r.is_complete else "unfinished"
        for r in releases
    }
    lines = [f"{state:10} {name}" for name, state in states.items()] or [f"nothing is installed in {prefix.path}"]
    _print(arguments, {"prefix": str(prefix.path), "live": live.name if live else None, "releases": states}, lines)
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from runtime.install import rollback
    from runtime.layout import Prefix

    release = rollback(Prefix(path=arguments.prefix.absolute()))
    _print(arguments, {"release": release.name}, [f"{release.name} is live again"])
    return 0


def _read_trust(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such allowed_signers file", hint="it came with the kit: kit/allowed_signers"
        ) from None
    except UnicodeDecodeError:
        raise TrustError(f"{path}: not an allowed_signers file: it isn't text") from None


def _parse_trust(text: str, path: Path) -> "TrustRoot":
    from manifests.trust import parse_allowed_signers

    return parse_allowed_signers(text, where=str(path))


def _print(arguments: argparse.Namespace, document: dict[str, object], lines: Sequence[str]) -> None:
    print(json.dumps(document, indent=2, sort_keys=True) if arguments.json else "\n".join(lines), flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
