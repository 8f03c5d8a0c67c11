"""Commands about registries: push, pull; and what a command takes that reads a bundle from one."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundler.cli.shared import PATH, answer, command, json_option, size_text, step, volumes_option
from manifests.errors import UsageError
from manifests.interrupts import interrupted

if TYPE_CHECKING:
    from manifests.reference import Remote

plain_http_option = click.option("--plain-http", is_flag=True, help="Talk to the registry of oci:// without TLS.")
ca_option = click.option(
    "--ca", type=PATH, metavar="FILE", help="Certificates to trust besides the system's, as PEM (or SSL_CERT_FILE)."
)


@command("push")
@click.argument("bundle", type=PATH)
@click.argument("reference", metavar="oci://HOST/REPO:TAG")
@volumes_option
@plain_http_option
@ca_option
@json_option
def push(
    bundle: Path, reference: str, volumes: tuple[Path, ...], ca: Path | None, *, plain_http: bool, as_json: bool
) -> None:
    """Bring BUNDLE into an OCI registry; what the registry has isn't sent again."""
    from bundler.publishing.registries import push_bundle
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar
    from manifests.sources import Supply

    remote = remote_of(reference, ca, plain_http=plain_http)
    with open_medium(bundle, Supply(folders=volumes)) as medium:
        size = parse_manifest(medium.manifest_bytes).payload_size
        with ProgressBar("push", size, sys.stderr) as progress:
            done = push_bundle(medium, remote, progress)
    document = {
        "bundle": str(bundle),
        "reference": str(remote),
        "digest": done.digest,
        "sent": done.sent,
        "sent_size": done.sent_size,
        "found": done.found,
    }
    lines = [
        f"{remote} is {bundle.name}: {done.sent} blobs sent, {size_text(done.sent_size)}, {done.found} were there",
        f"OCI manifest {done.digest}",
    ]
    answer(document, "\n".join(lines), as_json=as_json)


@command("pull")
@click.argument("reference", metavar="oci://HOST/REPO:TAG")
@click.option("--output", type=PATH, required=True, metavar="DIR", help="Where the bundle is written.")
@click.option(
    "--trust", type=PATH, metavar="FILE", help="allowed_signers: look at the signatures before anything else."
)
@plain_http_option
@ca_option
@json_option
def pull(reference: str, output: Path, trust: Path | None, ca: Path | None, *, plain_http: bool, as_json: bool) -> None:
    """Fetch a bundle from an OCI registry as the tar that it was; a pull that was stopped goes on."""
    from bundler.publishing.pulls import pull_bundle
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar

    with open_medium(remote_of(reference, ca, plain_http=plain_http)) as medium:
        signers = _signers(medium, trust)
        size = parse_manifest(medium.manifest_bytes).payload_size
        with ProgressBar("pull", size, sys.stderr) as progress:
            done = pull_bundle(medium, output, progress)
    document = {
        "bundle": str(done.bundle),
        "digest": done.digest,
        "size": done.size,
        "kept": done.kept,
        "signers": signers,
    }
    kept = f", of which {size_text(done.kept)} were there already" if done.kept else ""
    lines = [f"{done.bundle}: {size_text(done.size)}{kept}", f"manifest digest {done.digest}"]
    lines += [f"signed by {signer}" for signer in signers or ()]
    lines += [] if trust else ["its signatures were not looked at: that is for runtime verify, or for --trust FILE"]
    answer(document, "\n".join(lines), as_json=as_json)


def remote_of(text: str, ca: Path | None, *, plain_http: bool) -> "Remote":
    """Return what a command line names by ``oci://``; an interrupt ends every wait for the registry."""
    from manifests.reference import Remote, is_reference, parse_reference

    if not is_reference(text):
        raise UsageError(f"{text}: is not oci://HOST/REPO:TAG", hint="oci://registry.example:5000/team/bundle:1.0.0")
    reference = parse_reference(text)
    return Remote(reference=reference, plain_http=plain_http, ca=ca, stopped=interrupted(), report=step)


def bundle_arguments(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add arguments, each a path or ``oci://``, and their options; the command gets what ``open_medium`` takes."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @plain_http_option
        @ca_option
        @functools.wraps(function)
        def wrapped(*, plain_http: bool, ca: Path | None, **given: Any) -> None:  # noqa: ANN401 # the command's own
            from manifests.reference import is_reference

            for name in names:
                reads_registry = is_reference(given[name])
                given[name] = remote_of(given[name], ca, plain_http=plain_http) if reads_registry else Path(given[name])
            function(**given)

        for name in reversed(names):
            wrapped = click.argument(name)(wrapped)
        return wrapped

    return decorate


def _signers(medium: Any, trust: Path | None) -> list[str] | None:  # noqa: ANN401 # a Medium, imported late
    """Return who signed, of those that are trusted; None where nobody asked."""
    from datetime import UTC, datetime

    from manifests.bundle import verify_trust
    from manifests.trust import parse_allowed_signers

    if trust is None:
        return None
    if not trust.is_file():
        raise UsageError(f"{trust}: no such allowed_signers file", hint="bundler keygen writes PATH.allowed_signers")
    root = parse_allowed_signers(trust.read_text(encoding="utf-8"), where=str(trust))
    bundle = verify_trust(medium, root, now=datetime.now(UTC))
    return [f"{signer.principals} {signer.fingerprint}" for signer in bundle.signers]
