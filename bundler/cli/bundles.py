"""Commands that read a bundle: inspect, diff, rehearse, extract-chunks."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler.cli.registries import bundle_arguments
from bundler.cli.shared import (
    PATH,
    answer,
    command,
    evidence_option,
    json_option,
    read_signer,
    size_text,
    step,
    volumes_option,
)
from manifests.errors import UsageError

if TYPE_CHECKING:
    from manifests.reference import Remote


@command("inspect")
@bundle_arguments("bundle")
@evidence_option
@volumes_option
@json_option
def inspect(bundle: "Path | Remote", evidence: Path | None, volumes: tuple[Path, ...], *, as_json: bool) -> None:
    """Say what is in BUNDLE, what of it was rehearsed, and whose signatures it bears; nothing is trusted."""
    from bundler.review.summary import inspect_bundle, summary_lines
    from manifests.sources import Supply

    document = inspect_bundle(bundle, Supply(folders=volumes), evidence)
    answer(document, "\n".join(summary_lines(document)), as_json=as_json)


@command("diff")
@bundle_arguments("old", "new")
@json_option
def diff(old: "Path | Remote", new: "Path | Remote", *, as_json: bool) -> None:
    """Say what changed from OLD to NEW, bundles or manifest.json files, and what a delta would carry."""
    from bundler.review.diff import diff_bundles, diff_lines, load_described

    document = diff_bundles(load_described(old), load_described(new))
    answer(document, "\n".join(diff_lines(document)), as_json=as_json)


@command("extract-chunks")
@bundle_arguments("bundle")
@click.option("--chunks", type=PATH, required=True, metavar="LIST", help="What `runtime repair` printed.")
@click.option("--output", type=PATH, required=True, metavar="FILE", help="The repair file.")
@volumes_option
@json_option
def extract_chunks(
    bundle: "Path | Remote", chunks: Path, output: Path, volumes: tuple[Path, ...], *, as_json: bool
) -> None:
    """Write the chunks of BUNDLE that a damaged copy lacks into a small file for `runtime repair --from`."""
    from bundler.sealing.chunks import extract_chunks as extract
    from bundler.sealing.chunks import parse_chunk_list
    from manifests.sources import Supply

    try:
        text = chunks.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{chunks}: no such list", hint="runtime repair BUNDLE --list > LIST") from None
    except UnicodeDecodeError:
        raise UsageError(f"{chunks}: not a list of chunks: it isn't text") from None
    done = extract(bundle, parse_chunk_list(text, where=str(chunks)), output, Supply(folders=volumes))
    document = {"output": str(output), "chunks": done.pieces, "size": done.size}
    answer(document, f"{output}: {done.pieces} chunks, {size_text(done.size)}", as_json=as_json)


@command("rehearse")
@click.argument("bundle", type=PATH)
@click.option("--trust", type=PATH, required=True, metavar="FILE", help="allowed_signers of whoever signed it.")
@click.option("--base", type=PATH, metavar="BUNDLE", help="Of a delta: the bundle that it was made to.")
@click.option(
    "--evidence", type=PATH, metavar="FILE", help="Write down what was rehearsed. [default with --key: beside BUNDLE]"
)
@click.option("--key", metavar="FILE", help="Sign the evidence: OpenSSH Ed25519 private key, or agent:FINGERPRINT.")
@volumes_option
@json_option
def rehearse(
    bundle: Path,
    trust: Path,
    base: Path | None,
    volumes: tuple[Path, ...],
    *,
    evidence: Path | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Install BUNDLE in a namespace without network, verify it there and ask its models."""
    from bundler.rehearsal.evidence import check_evidence_place, evidence_path, file_evidence
    from bundler.rehearsal.rehearse import open_base, rehearse_bundle

    if not trust.is_file():
        raise UsageError(f"{trust}: no such allowed_signers file", hint="bundler keygen writes PATH.allowed_signers")
    signer = read_signer(key) if key is not None else None
    place = evidence_path(bundle.name, bundle.parent) if evidence is None and signer is not None else evidence
    if place is not None:
        check_evidence_place(place, signer)
    text = trust.read_text(encoding="utf-8")
    with ExitStack() as stack:
        source = stack.enter_context(open_base(base, bundle)) if base is not None else None
        done = rehearse_bundle(bundle, text, step, volumes=volumes, base=source)
    written = file_evidence(done, place, signer) if place is not None else ()
    what = "installed, verified and asked without network" if done.rehearsed else "not rehearsed here"
    document: dict[str, object] = {
        "bundle": str(bundle),
        "digest": done.digest,
        "not_rehearsed": list(done.left_out),
        "rehearsed": done.rehearsed,
    }
    document |= {"evidence": [str(path) for path in written]} if written else {}
    lines = [f"{bundle}: {what}", *(f"{path}{'' if signer else '  not signed'}" for path in written)]
    answer(document, "\n".join(lines), as_json=as_json)
