"""Commands that read a bundle: inspect, rehearse, extract-chunks."""

from pathlib import Path

import click

from bundler.cli.shared import PATH, answer, command, json_option, size_text, step
from manifests.errors import UsageError


@command("inspect")
@click.argument("bundle", type=PATH)
@json_option
def inspect(bundle: Path, *, as_json: bool) -> None:
    """Say what is in BUNDLE and whose signatures it bears; nothing is trusted."""
    from bundler.summary import inspect_bundle, summary_lines

    document = inspect_bundle(bundle)
    answer(document, "\n".join(summary_lines(document)), as_json=as_json)


@command("extract-chunks")
@click.argument("bundle", type=PATH)
@click.option("--chunks", type=PATH, required=True, metavar="LIST", help="What `runtime repair` printed.")
@click.option("--output", type=PATH, required=True, metavar="FILE", help="The repair file.")
@json_option
def extract_chunks(bundle: Path, chunks: Path, output: Path, *, as_json: bool) -> None:
    """Write the chunks of BUNDLE that a damaged copy lacks into a small file for `runtime repair --from`."""
    from bundler.chunks import extract_chunks as extract
    from bundler.chunks import parse_chunk_list

    try:
        text = chunks.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{chunks}: no such list", hint="runtime repair BUNDLE --list > LIST") from None
    except UnicodeDecodeError:
        raise UsageError(f"{chunks}: not a list of chunks: it isn't text") from None
    done = extract(bundle, parse_chunk_list(text, where=str(chunks)), output)
    document = {"output": str(output), "chunks": done.pieces, "size": done.size}
    answer(document, f"{output}: {done.pieces} chunks, {size_text(done.size)}", as_json=as_json)


@command("rehearse")
@click.argument("bundle", type=PATH)
@click.option("--trust", type=PATH, required=True, metavar="FILE", help="allowed_signers of whoever signed it.")
@json_option
def rehearse(bundle: Path, trust: Path, *, as_json: bool) -> None:
    """Install BUNDLE in a namespace without network, verify it there and ask its models."""
    from bundler.rehearse import rehearse_bundle

    if not trust.is_file():
        raise UsageError(f"{trust}: no such allowed_signers file", hint="bundler keygen writes PATH.allowed_signers")
    done = rehearse_bundle(bundle, trust.read_text(encoding="utf-8"), step)
    text = f"{bundle}: installed, verified and asked without network" if done else f"{bundle}: not rehearsed here"
    answer({"bundle": str(bundle), "rehearsed": done}, text, as_json=as_json)
