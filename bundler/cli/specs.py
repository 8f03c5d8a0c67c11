"""Commands that start from a spec: init, check, lock, build, and the quickstart."""

import sys
from pathlib import Path
from typing import Any

import click

from bundler.cli.shared import (
    PATH,
    answer,
    command,
    identity_of,
    json_option,
    pip_config,
    progress,
    read_signer,
    size_text,
    step,
    target_option,
)
from manifests.errors import UsageError


@command("init")
@click.argument("path", type=PATH, default=Path("bundle.toml"))
def init(path: Path) -> None:
    """Write a commented spec to PATH."""
    from bundler.specfile import init_spec

    init_spec(path)
    click.echo(f"{path} written; edit it, then: bundler check {path}")


@command("check")
@click.argument("spec", type=PATH)
@target_option
@json_option
def check(spec: Path, platform: str | None, *, as_json: bool) -> None:
    """Validate SPEC; no network is used."""
    from bundler.specfile import check_spec, load_spec

    loaded = load_spec(spec, platform=platform)
    check_spec(loaded)
    document = {"name": loaded.name, "version": loaded.version, "target": loaded.target.label, "digest": loaded.digest}
    answer(document, f"{spec}: good ({loaded.name} {loaded.version} for {loaded.target.label})", as_json=as_json)


@command("lock")
@click.argument("spec", type=PATH)
@click.option("--upgrade", is_flag=True, help="Take the newest versions instead of keeping the lock's.")
@target_option
@json_option
def lock(spec: Path, platform: str | None, *, upgrade: bool, as_json: bool) -> None:
    """Resolve SPEC for its target, have every byte in the store, and write the lock beside it."""
    from bundler.lock import write_lock
    from bundler.specfile import load_spec

    loaded = load_spec(spec, platform=platform)
    made = make_lock(loaded, upgrade=upgrade)
    write_lock(loaded.lock_path, made)
    size = sum(file.size for file in made.all_files())
    document = {"lock": str(loaded.lock_path), "wheels": len(made.wheels), "models": len(made.models), "size": size}
    text = f"{loaded.lock_path}: {len(made.wheels)} wheels, {len(made.models)} models, {size_text(size)}"
    answer(document, text, as_json=as_json)


@command("build")
@click.argument("spec", type=PATH)
@click.option("--output", type=PATH, required=True, metavar="DIR", help="Where bundle and kit are written.")
@click.option("--key", metavar="FILE", help="OpenSSH Ed25519 private key to sign with, or agent:FINGERPRINT.")
@click.option("--unsigned", is_flag=True, help="Leave the slot empty, to be signed later.")
@click.option(
    "--identity", metavar="WHO", help="Who signs, as in the kit's allowed_signers. [default: KEY.pub's comment]"
)
@click.option("--no-rehearsal", is_flag=True, help="Don't install and ask the bundle before it is signed.")
@target_option
@json_option
def build(
    spec: Path,
    output: Path,
    key: str | None,
    identity: str | None,
    platform: str | None,
    *,
    unsigned: bool,
    no_rehearsal: bool,
    as_json: bool,
) -> None:
    """Build the bundle of SPEC and its kit; locks first where there is no lock yet."""
    from bundler.build import BuildOptions, build_bundle
    from bundler.lock import load_lock, write_lock
    from bundler.specfile import load_spec
    from bundler.store import Store

    if (key is None) != unsigned:
        raise UsageError("build takes --key FILE or --unsigned, one of the two", hint="bundler keygen makes a key")
    loaded = load_spec(spec, platform=platform)
    signer = read_signer(key) if key is not None else None
    if not loaded.lock_path.exists():
        write_lock(loaded.lock_path, make_lock(loaded, upgrade=False))
    options = BuildOptions(
        output=output, signer=signer, identity=identity or identity_of(key, signer), rehearse=not no_rehearsal
    )
    locked = load_lock(loaded.lock_path)
    built = build_bundle(loaded, locked, Store(), options, progress=progress("pack"), report=step)
    document = {
        "bundle": str(built.bundle),
        "kit": str(built.kit),
        "digest": built.digest,
        "kit_digest": built.kit_digest,
        "size": built.size,
    }
    lines = [
        f"{built.bundle}  {size_text(built.size)}",
        f"{built.kit}  its digest, for the telephone: {built.kit_digest}",
        f"manifest digest {built.digest}",
        *([] if signer else ["not signed yet: bundler sign BUNDLE --key FILE"]),
    ]
    answer(document, "\n".join(lines), as_json=as_json)


@command("quickstart")
@click.option("--directory", type=PATH, default=Path("quickstart-demo"), show_default=True, metavar="DIR")
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
            resolver=UvResolver(config=pip_config()),
            config=pip_config(),
            progress=progress("pack"),
            say=say,
            now=activity.step,
        )


def make_lock(spec: Any, *, upgrade: bool) -> Any:  # noqa: ANN401 # a Spec in, a Lock out; both imported late
    """Return a new lock of a spec; ``upgrade`` takes the newest versions instead of keeping the old lock's."""
    from bundler.lock import load_lock
    from bundler.relock import lock_spec
    from bundler.resolver import UvResolver
    from bundler.store import Store

    previous = load_lock(spec.lock_path) if spec.lock_path.exists() and not upgrade else None
    resolver = UvResolver(config=pip_config())
    return lock_spec(spec, Store(), resolver, pip_config(), previous=previous, report=step)
