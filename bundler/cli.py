"""The command line of the builder's side: options in, one library call, one answer out."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from manifests import __version__
from manifests.errors import SealiftError

_PATH = click.Path(path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


class Boundary(click.Group):
    """The only place where an error becomes an exit status and a message becomes text."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 # click's own signature
        """Run a command; what Sealift reports is printed, a bug keeps its traceback."""
        try:
            return super().invoke(ctx)
        except SealiftError as error:
            _say(error.render())
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            _say("stopped: nothing half-made was left; run the same command again to go on")
            ctx.exit(130)
        except OSError as error:
            from manifests.files import disk_error

            if isinstance(error, BrokenPipeError):
                raise
            wrapped = disk_error(error, f"use {error.filename}" if error.filename else "go on")
            _say(wrapped.render())
            ctx.exit(wrapped.exit_code)


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="bundler")
def main() -> None:
    """Seal Python wheels and models into a signed bundle for a closed network."""
    signal.signal(signal.SIGTERM, _interrupt)


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Register a command that also knows ``--version``."""

    def decorate(function: Callable[..., None]) -> click.Command:
        return main.command(name)(click.version_option(__version__, prog_name="bundler")(function))

    return decorate


@command("init")
@click.argument("path", type=_PATH, default=Path("bundle.toml"))
def init(path: Path) -> None:
    """Write a commented spec to PATH."""
    from bundler.spec import init_spec

    init_spec(path)
    click.echo(f"{path} written; edit it, then: bundler check {path}")


@command("check")
@click.argument("spec", type=_PATH)
@_json
def check(spec: Path, *, as_json: bool) -> None:
    """Validate SPEC; no network is used."""
    from bundler.spec import check_spec, load_spec

    loaded = load_spec(spec)
    check_spec(loaded)
    document = {"name": loaded.name, "version": loaded.version, "target": loaded.target.label, "digest": loaded.digest}
    _print(document, f"{spec}: good ({loaded.name} {loaded.version} for {loaded.target.label})", as_json=as_json)


@command("keygen")
@click.argument("path", type=_PATH)
@click.option("--identity", required=True, metavar="WHO", help="Who signs, such as release@example.com.")
@_json
def keygen(path: Path, identity: str, *, as_json: bool) -> None:
    """Make a signing key: PATH, PATH.pub and PATH.allowed_signers."""
    from bundler.keys import write_key

    signer = write_key(path, identity)
    document = {"key": str(path), "fingerprint": signer.key.fingerprint, "allowed_signers": f"{path}.allowed_signers"}
    lines = [
        f"{path}  the private key: keep it off every medium that crosses",
        f"{path}.pub",
        f"{path}.allowed_signers  the closed side's trust file: it travels by another way than the bundle",
        f"fingerprint {signer.key.fingerprint}",
    ]
    _print(document, "\n".join(lines), as_json=as_json)


@command("sign")
@click.argument("bundle", type=_PATH)
@click.option("--key", type=_PATH, help="OpenSSH Ed25519 private key.")
@click.option("--attach", type=_PATH, metavar="FILE.sig", help="A signature made elsewhere with ssh-keygen -Y sign.")
@_json
def sign(bundle: Path, key: Path | None, attach: Path | None, *, as_json: bool) -> None:
    """Fill or co-sign the signature slot of BUNDLE in place."""
    from bundler.sign import attach_signature, sign_bundle
    from manifests.errors import UsageError

    if (key is None) == (attach is None):
        raise UsageError("sign takes --key FILE or --attach FILE.sig, one of the two", hint="bundler sign --help")
    if key is not None:
        count = sign_bundle(bundle, _load_signer(key))
    elif attach is not None:
        count = attach_signature(bundle, attach.read_bytes())
    _print({"bundle": str(bundle), "signatures": count}, f"{bundle} has {count} signatures", as_json=as_json)


@command("manifest")
@click.argument("bundle", type=_PATH)
def manifest(bundle: Path) -> None:
    """Print the manifest.json of BUNDLE, to be signed elsewhere."""
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium

    with open_medium(bundle) as medium:
        parse_manifest(medium.manifest_bytes)
        sys.stdout.buffer.write(medium.manifest_bytes)


@command("inspect")
@click.argument("bundle", type=_PATH)
@_json
def inspect(bundle: Path, *, as_json: bool) -> None:
    """Say what is in BUNDLE and whose signatures it bears; nothing is trusted."""
    from bundler.summary import inspect_bundle, summary_lines

    document = inspect_bundle(bundle)
    _print(document, "\n".join(summary_lines(document)), as_json=as_json)


def _load_signer(path: Path) -> Any:  # noqa: ANN401 # bundler.keys.Signer, imported late
    from bundler.keys import load_signer

    return load_signer(path, lambda: click.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def _print(document: Mapping[str, object], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2, sort_keys=True) if as_json else text)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
