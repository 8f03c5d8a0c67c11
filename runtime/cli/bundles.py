"""Commands that take a bundle: preflight, install, and verify in both its forms."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from manifests.errors import UsageError
from runtime.cli.auditing import noted
from runtime.cli.evidence import check_lines, verify_prefix
from runtime.cli.media import add_volumes, delta_lines, supply_of
from runtime.cli.registries import add_bundle, reached
from runtime.cli.shared import Commands, add_command, add_prefix, add_trust, answer, say
from runtime.cli.trusting import choose_trust, offer_rotation


def add_bundle_commands(commands: Commands) -> None:
    """Add them to the parser."""
    _add_preflight(commands)
    _add_install(commands)
    _add_verify(commands)


def _add_preflight(commands: Commands) -> None:
    parser = add_command(commands, "preflight", "Check whether this host fits a bundle; nothing stays written.")
    add_bundle(parser)
    add_prefix(parser, required=False)
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python to make the environment from")
    parser.add_argument("--container", action="store_true", help="ask for a container engine too: docker or podman")
    parser.add_argument("--port", type=int, default=0, metavar="PORT", help="ask whether the server could listen here")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="the address of --port")
    parser.add_argument("--service-user", default="", metavar="NAME", help="who is going to read what is installed")
    parser.set_defaults(command=_preflight)


def _add_install(commands: Commands) -> None:
    parser = add_command(commands, "install", "Verify a bundle and make it the live release of a prefix.")
    add_bundle(parser)
    add_prefix(parser)
    add_trust(parser, "those of `runtime trust init`")
    text = "make the signers that this bundle proposes those of the prefix"
    parser.add_argument("--accept-signers", action="store_true", help=text)
    parser.add_argument("--allow-downgrade", action="store_true", help="accept a bundle older than what was installed")
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python to make the environment from")
    parser.add_argument("--no-smoke", action="store_true", help="skip the import test of the new environment")
    add_volumes(parser)
    parser.set_defaults(command=_install)


def _add_verify(commands: Commands) -> None:
    parser = add_command(commands, "verify", "Verify a bundle on its medium, or the installed release before go-live.")
    add_bundle(parser, optional=True)
    add_prefix(parser, required=False)
    add_trust(parser, "the prefix's own; needed for a BUNDLE")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="sizes, times and inodes instead of digests (installed)")
    depth.add_argument("--deep", action="store_true", help="whole-file digests of chunked files too")
    parser.add_argument("--no-models", action="store_true", help="do not load the models (installed)")
    text = "file the whole go-live report here, as JSON and as a page, with the host's table (installed)"
    parser.add_argument("--report", type=Path, metavar="DIR", help=text)
    parser.add_argument("--service-user", default="", metavar="NAME", help="who has to read the release, for --report")
    add_volumes(parser)
    parser.set_defaults(command=_verify)


def _preflight(arguments: argparse.Namespace) -> int:
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium
    from runtime.hostchecks import HostQuestions, check_host
    from runtime.install import base_problem
    from runtime.layout import Prefix
    from runtime.preflight import require
    from runtime.state import load_state

    prefix = Prefix(path=(arguments.prefix or Path.cwd()).absolute())
    with open_medium(reached(arguments.bundle, arguments)) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        lacking = base_problem(medium, manifest, prefix)
    state = load_state(prefix)
    questions = HostQuestions(
        now=datetime.now(UTC),
        python=arguments.python,
        address=arguments.host,
        port=arguments.port,
        container=arguments.container,
        service_user=arguments.service_user,
        newest=state.created if state else "",
    )
    checks = check_host(manifest, prefix, questions)
    rows = [
        {"check": c.name, "found": c.found, "needed": c.needed, "verdict": c.verdict, "remedy": c.remedy}
        for c in checks
    ]
    answer(arguments, {"bundle": manifest.stem, "trusted": False, "checks": rows}, check_lines(checks))
    require(checks)
    if lacking is not None:
        raise lacking
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from manifests.bundle import verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar
    from runtime.install import InstallOptions, install
    from runtime.layout import Prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    chosen = choose_trust(arguments, prefix, confirmed=True)
    options = InstallOptions(
        trust_text=chosen.text,
        notes=(chosen.time.note,) if chosen.time.note else (),
        allow_downgrade=arguments.allow_downgrade,
        python=arguments.python,
        smoke=not arguments.no_smoke,
    )
    with open_medium(reached(arguments.bundle, arguments), supply_of(arguments)) as medium:
        bundle = verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)
        release = prefix.release_for(bundle.manifest, bundle.digest)
        noted(arguments, release=release.name, digest=bundle.digest)
        for signer in bundle.signers:
            say(f"signed by {signer.principals} {signer.fingerprint}")
        with ProgressBar("copy and verify", bundle.manifest.payload_size, sys.stderr) as progress:
            done = install(bundle, prefix, options, progress, lambda step: say(f"... {step}"))
    what = "is live" if done.changed else "was live already, nothing to do"
    document = {
        "release": done.release.name,
        "digest": bundle.digest,
        "path": str(done.release.path),
        "changed": done.changed,
        **offer_rotation(arguments, prefix, done.release, bundle, chosen),
    }
    answer(arguments, document, [f"{done.release.name} {what} ({done.release.path})"])
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    if (arguments.bundle is None) == (arguments.prefix is None):
        raise UsageError("verify takes a BUNDLE or --prefix DIR, one of the two", hint="runtime verify --help")
    if arguments.bundle is not None and arguments.report is not None:
        raise UsageError("--report is about an installed release", hint="runtime verify --prefix DIR --report DIR")
    return _verify_bundle(arguments) if arguments.bundle is not None else verify_prefix(arguments)


def _verify_bundle(arguments: argparse.Namespace) -> int:
    from manifests.bundle import carried_files, verify_content, verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar, format_size

    chosen = choose_trust(arguments, None)
    with open_medium(reached(arguments.bundle, arguments), supply_of(arguments)) as medium:
        bundle = verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)
        manifest = bundle.manifest
        files = carried_files(medium, manifest)
        size = sum(entry.size for entry in files)
        with ProgressBar("verify", size, sys.stderr) as progress:
            verify_content(medium, manifest, progress, deep=arguments.deep)
    signers = [f"{signer.principals} {signer.fingerprint}" for signer in bundle.signers]
    more, delta = delta_lines(bundle)
    document = {"bundle": manifest.stem, "digest": bundle.digest, "files": len(files), "signers": signers, **more}
    lines = [
        f"good: {manifest.stem}, {len(files)} files, {format_size(size)}",
        *delta,
        f"manifest digest {bundle.digest}",
        *(f"signed by {signer}" for signer in signers),
    ]
    answer(arguments, document | {"size": size}, lines)
    return 0
