"""Commands that take a bundle: preflight, install, and verify in both its forms."""

import argparse
import sys
from pathlib import Path

from manifests.errors import UsageError
from runtime.cli.shared import Commands, add_command, add_prefix, add_trust, answer, say
from runtime.cli.trusting import choose_trust, offer_rotation


def add_bundle_commands(commands: Commands) -> None:
    """Add them to the parser."""
    _add_preflight(commands)
    _add_install(commands)
    _add_verify(commands)


def _add_preflight(commands: Commands) -> None:
    parser = add_command(commands, "preflight", "Check whether this host fits a bundle; nothing is written.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_prefix(parser, required=False)
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python to make the environment from")
    parser.set_defaults(command=_preflight)


def _add_install(commands: Commands) -> None:
    parser = add_command(commands, "install", "Verify a bundle and make it the live release of a prefix.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_prefix(parser)
    add_trust(parser, "those of `runtime trust init`")
    text = "make the signers that this bundle proposes those of the prefix"
    parser.add_argument("--accept-signers", action="store_true", help=text)
    parser.add_argument("--allow-downgrade", action="store_true", help="accept a bundle older than what was installed")
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python to make the environment from")
    parser.add_argument("--no-smoke", action="store_true", help="skip the import test of the new environment")
    parser.set_defaults(command=_install)


def _add_verify(commands: Commands) -> None:
    parser = add_command(commands, "verify", "Verify a bundle on its medium, or the installed release before go-live.")
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE")
    add_prefix(parser, required=False)
    add_trust(parser, "the prefix's own; needed for a BUNDLE")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="sizes, times and inodes instead of digests (installed)")
    depth.add_argument("--deep", action="store_true", help="whole-file digests of chunked files too")
    parser.add_argument("--no-models", action="store_true", help="do not load the models (installed)")
    parser.set_defaults(command=_verify)


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
    answer(arguments, {"bundle": manifest.stem, "trusted": False, "checks": rows}, lines)
    require(checks)
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
    with open_medium(arguments.bundle) as medium:
        bundle = verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)
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
    return _verify_bundle(arguments) if arguments.bundle is not None else _verify_prefix(arguments)


def _verify_bundle(arguments: argparse.Namespace) -> int:
    from manifests.bundle import verify_content, verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar, format_size

    chosen = choose_trust(arguments, None)
    with open_medium(arguments.bundle) as medium:
        bundle = verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)
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
    answer(arguments, document | {"size": manifest.payload_size}, lines)
    return 0


def _verify_prefix(arguments: argparse.Namespace) -> int:
    from manifests.progress import ProgressBar
    from runtime.layout import Prefix
    from runtime.state import record
    from runtime.verify import VerifyOptions, checked_size, verify_release

    prefix = Prefix(path=arguments.prefix.absolute())
    release = prefix.require_live()
    chosen = choose_trust(arguments, prefix)
    if arguments.verify_time is not None:
        record(prefix, f"verify {release.name}: {chosen.time.note}")
    source = str(arguments.trust) if arguments.trust else "the prefix itself (no --trust was given)"
    depth = "quick" if arguments.quick else "deep" if arguments.deep else "normal"
    options = VerifyOptions(
        trust=chosen.trust,
        trust_source=source,
        now=chosen.time.now,
        threshold=arguments.signatures,
        depth=depth,
        models=not (arguments.no_models or arguments.quick),
    )
    with ProgressBar("verify", checked_size(release, depth), sys.stderr) as progress:
        found = verify_release(prefix, release, options, progress, lambda step: say(f"... {step}"))
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
    answer(arguments, document | {"exit_code": found.exit_code}, lines)
    return found.exit_code
