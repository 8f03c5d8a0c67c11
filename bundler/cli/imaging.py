"""The command that makes a container image of a bundle: image."""

import sys
from pathlib import Path

import click

from bundler.cli.shared import PATH, answer, command, json_option, size_text, step
from manifests.errors import UsageError


@command("image")
@click.argument("bundle", type=PATH)
@click.option(
    "--base", type=PATH, required=True, metavar="LAYOUT", help="OCI image layout of the base: a folder or tar."
)
@click.option("--output", type=PATH, required=True, metavar="DIR", help="The new image's OCI layout.")
@click.option("--trust", type=PATH, required=True, metavar="FILE", help="allowed_signers of whoever signed it.")
@click.option("--tag", default="", metavar="NAME", help="The image's name in the layout. [default: NAME:VERSION]")
@click.option("--prefix", default="/opt/sealift", show_default=True, metavar="DIR", help="Where it is in the image.")
@click.option("--kustomize", type=PATH, metavar="DIR", help="Write a Kustomize base for the image as well.")
@json_option
def image(
    bundle: Path,
    base: Path,
    output: Path,
    trust: Path,
    *,
    tag: str,
    prefix: str,
    kustomize: Path | None,
    as_json: bool,
) -> None:
    """Make an OCI image of BUNDLE, installed on a base image, without a container engine."""
    from bundler.imaging.image import ImageOrder, make_image
    from bundler.imaging.inside import require_bubblewrap
    from bundler.imaging.kustomize import check_kustomize_place, write_kustomize
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar

    if not trust.is_file():
        raise UsageError(f"{trust}: no such allowed_signers file", hint="bundler keygen writes PATH.allowed_signers")
    require_bubblewrap()
    if kustomize is not None:
        check_kustomize_place(kustomize)
    order = ImageOrder(
        bundle=bundle, base=base, output=output, trust=trust.read_text(encoding="utf-8"), tag=tag, prefix=prefix
    )
    with open_medium(bundle) as medium:
        size = parse_manifest(medium.manifest_bytes).payload_size
    with ProgressBar("verify", size, sys.stderr) as progress:
        done = make_image(order, step, progress=progress)
    written = write_kustomize(kustomize, done, prefix) if kustomize is not None else ()
    document = {
        "output": str(output),
        "tag": done.tag,
        "digest": done.digest,
        "manifest_digest": done.manifest_digest,
        "base_layers": done.base_layers,
        "layers": [{"title": title, "digest": layer.digest, "size": layer.size} for title, layer in done.layers],
        "kustomize": [str(path) for path in written],
    }
    lines = [f"{output}: image {done.tag}, {done.base_layers} layers of the base and {len(done.layers)} of the bundle"]
    lines += [f"  {title:8} {size_text(layer.size):>9}  {layer.digest}" for title, layer in done.layers]
    lines += [f"image digest {done.digest}", f"manifest digest {done.manifest_digest}", *map(str, written)]
    answer(document, "\n".join(lines), as_json=as_json)
