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


@command("lock")
@click.argument("spec", type=_PATH)
@click.option("--upgrade", is_flag=True, help="Take the newest versions instead of keeping the lock's.")
@_json
def lock(spec: Path, *, upgrade: bool, as_json: bool) -> None:
    """Resolve SPEC for its target, have every byte in the store, and write the lock beside it."""
    from bundler.lock import write_lock
    from bundler.spec import load_spec

    loaded = load_spec(spec)
    made = _make_lock(loaded, upgrade=upgrade)
    write_lock(loaded.lock_path, made)
    size = sum(file.size for file in made.all_files())
    document = {"lock": str(loaded.lock_path), "wheels": len(made.wheels), "models": len(made.models), "size": size}
    text = f"{loaded.lock_path}: {len(made.wheels)} wheels, {len(made.models)} models, {_size(size)}"
    _print(document, text, as_json=as_json)


@command("build")
@click.argument("spec", type=_PATH)
@click.option("--output", type=_PATH, required=True, metavar="DIR", help="Where bundle and kit are written.")
@click.option("--key", metavar="FILE", help="OpenSSH Ed25519 private key to sign with, or agent:FINGERPRINT.")
@click.option("--unsigned", is_flag=True, help="Leave the slot empty, to be signed later.")
@click.option(
    "--identity", metavar="WHO", help="Who signs, as in the kit's allowed_signers. [default: KEY.pub's comment]"
)
@click.option("--no-rehearsal", is_flag=True, help="Don't install and ask the bundle before it is signed.")
@_json
def build(
    spec: Path,
    output: Path,
    key: str | None,
    identity: str | None,
    *,
    unsigned: bool,
    no_rehearsal: bool,
    as_json: bool,
) -> None:
    """Build the bundle of SPEC and its kit; locks first where there is no lock yet."""
    from bundler.build import BuildOptions, build_bundle
    from bundler.lock import load_lock, write_lock
    from bundler.spec import load_spec
    from bundler.store import Store
    from manifests.errors import UsageError

    if (key is None) != unsigned:
        raise UsageError("build takes --key FILE or --unsigned, one of the two", hint="bundler keygen makes a key")
    loaded = load_spec(spec)
    signer = _load_signer(key) if key is not None else None
    if not loaded.lock_path.exists():
        write_lock(loaded.lock_path, _make_lock(loaded, upgrade=False))
    options = BuildOptions(
        output=output, signer=signer, identity=identity or _identity_of(key, signer), rehearse=not no_rehearsal
    )
    locked = load_lock(loaded.lock_path)
    built = build_bundle(loaded, locked, Store(), options, progress=_progress("pack"), report=_step)
    document = {
        "bundle": str(built.bundle),
        "kit": str(built.kit),
        "digest": built.digest,
        "kit_digest": built.kit_digest,
        "size": built.size,
    }
    lines = [
        f"{built.bundle}  {_size(built.size)}",
        f"{built.kit}  its digest, for the telephone: {built.kit_digest}",
        f"manifest digest {built.digest}",
        *([] if signer else ["not signed yet: bundler sign BUNDLE --key FILE"]),
    ]
    _print(document, "\n".join(lines), as_json=as_json)


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
@click.option("--key", metavar="FILE", help="OpenSSH Ed25519 private key, or agent:FINGERPRINT for one of ssh-agent.")
@click.option("--attach", type=_PATH, metavar="FILE.sig", help="A signature made elsewhere with ssh-keygen -Y sign.")
@_json
def sign(bundle: Path, key: str | None, attach: Path | None, *, as_json: bool) -> None:
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


@command("extract-chunks")
@click.argument("bundle", type=_PATH)
@click.option("--chunks", type=_PATH, required=True, metavar="LIST", help="What `runtime repair` printed.")
@click.option("--output", type=_PATH, required=True, metavar="FILE", help="The repair file.")
@_json
def extract_chunks(bundle: Path, chunks: Path, output: Path, *, as_json: bool) -> None:
    """Write the chunks of BUNDLE that a damaged copy lacks into a small file for `runtime repair --from`."""
    from bundler.chunks import extract_chunks as extract
    from bundler.chunks import parse_chunk_list
    from manifests.errors import UsageError

    try:
        text = chunks.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{chunks}: no such list", hint="runtime repair BUNDLE --list > LIST") from None
    except UnicodeDecodeError:
        raise UsageError(f"{chunks}: not a list of chunks: it isn't text") from None
    done = extract(bundle, parse_chunk_list(text, where=str(chunks)), output)
    document = {"output": str(output), "chunks": done.pieces, "size": done.size}
    _print(document, f"{output}: {done.pieces} chunks, {_size(done.size)}", as_json=as_json)


@command("rehearse")
@click.argument("bundle", type=_PATH)
@click.option("--trust", type=_PATH, required=True, metavar="FILE", help="allowed_signers of whoever signed it.")
@_json
def rehearse(bundle: Path, trust: Path, *, as_json: bool) -> None:
    """Install BUNDLE in a namespace without network, verify it there and ask its models."""
    from bundler.rehearse import rehearse_bundle
    from manifests.errors import UsageError

    if not trust.is_file():
        raise UsageError(f"{trust}: no such allowed_signers file", hint="bundler keygen writes PATH.allowed_signers")
    done = rehearse_bundle(bundle, trust.read_text(encoding="utf-8"), _step)
    text = f"{bundle}: installed, verified and asked without network" if done else f"{bundle}: not rehearsed here"
    _print({"bundle": str(bundle), "rehearsed": done}, text, as_json=as_json)


@command("quickstart")
@click.option("--directory", type=_PATH, default=Path("quickstart-demo"), show_default=True, metavar="DIR")
def quickstart(directory: Path) -> None:
    """Do the whole story on a small real bundle, with throw-away keys, in DIR."""
    from bundler.quickstart import run_quickstart
    from bundler.resolver import UvResolver
    from manifests.progress import Activity

    with Activity(sys.stderr) as activity:

        def say(text: str) -> None:
            activity.clear()
            click.echo(text)

        run_quickstart(
            directory,
            resolver=UvResolver(config=_pip_config()),
            config=_pip_config(),
            progress=_progress("pack"),
            say=say,
            now=activity.step,
        )


def _make_lock(spec: Any, *, upgrade: bool) -> Any:  # noqa: ANN401 # a Spec in, a Lock out; both imported late
    from bundler.lock import load_lock
    from bundler.relock import lock_spec
    from bundler.resolver import UvResolver
    from bundler.store import Store

    previous = load_lock(spec.lock_path) if spec.lock_path.exists() and not upgrade else None
    resolver = UvResolver(config=_pip_config())
    return lock_spec(spec, Store(), resolver, _pip_config(), previous=previous, report=_step)


def _pip_config() -> Any:  # noqa: ANN401 # a PipConfig, imported late
    from bundler.pipconfig import load_pip_config

    return load_pip_config()


def _identity_of(key: str | None, signer: Any) -> str:  # noqa: ANN401 # bundler.keys.Signer, imported late
    """Return the comment of KEY.pub, or the agent's: the name that the kit's allowed_signers gives the signer."""
    from bundler.keys import check_identity
    from manifests.errors import UsageError

    if key is None:
        return "builder"
    public = Path(f"{key}.pub")
    fields = public.read_text(encoding="utf-8").split(None, 2) if public.is_file() else []
    comment: str = getattr(signer, "comment", fields[2].strip() if len(fields) == 3 else "")
    try:
        check_identity(comment)
    except UsageError:
        return "builder"
    return comment


def _progress(label: str) -> Callable[[int], Any]:
    from manifests.progress import ProgressBar

    return lambda total: ProgressBar(label, total, sys.stderr)


def _size(count: int) -> str:
    from manifests.progress import format_size

    return format_size(count)


def _step(text: str) -> None:
    _say(f"... {text}")


def _load_signer(key: str) -> Any:  # noqa: ANN401 # bundler.keys.Signer, imported late
    from bundler.agent import AGENT_PREFIX, load_agent_signer
    from bundler.keys import load_signer

    if key.startswith(AGENT_PREFIX):
        return load_agent_signer(key)
    return load_signer(Path(key), lambda: click.prompt(f"Passphrase of {key}", hide_input=True, err=True))


def _print(document: Mapping[str, object], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2, sort_keys=True) if as_json else text)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
