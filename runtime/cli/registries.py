"""The BUNDLE of a command: a path, or ``oci://HOST/REPOSITORY:TAG`` with how to reach the registry."""

import argparse
from pathlib import Path

from manifests.interrupts import interrupted
from manifests.reference import Reference, Remote, is_reference, parse_reference
from runtime.cli.shared import say


def add_bundle(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add BUNDLE, ``--plain-http`` and ``--ca``."""
    text = "a .bundle.tar, its first volume, an unpacked folder, or oci://HOST/REPOSITORY:TAG"
    parser.add_argument("bundle", type=place, nargs="?" if optional else None, metavar="BUNDLE", help=text)
    add_registry(parser)


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Add ``--plain-http`` and ``--ca``."""
    parser.add_argument("--plain-http", action="store_true", help="talk to the registry of oci:// without TLS")
    text = "certificates to trust besides the system's, as PEM, for the registry of oci:// (or SSL_CERT_FILE)"
    parser.add_argument("--ca", type=Path, metavar="FILE", help=text)


def place(text: str) -> Path | Reference:
    """Parse a word of the command line that names a bundle."""
    return parse_reference(text) if is_reference(text) else Path(text)


def reached(chosen: Path | Reference, arguments: argparse.Namespace) -> Path | Remote:
    """Return what :func:`manifests.medium.open_medium` takes; an interrupt ends every wait for a registry."""
    if isinstance(chosen, Path):
        return chosen
    return Remote(
        reference=chosen,
        plain_http=arguments.plain_http,
        ca=arguments.ca,
        stopped=interrupted(),
        report=lambda text: say(f"... {text}"),
    )
