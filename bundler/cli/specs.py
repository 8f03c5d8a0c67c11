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
    volumes_option,
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
@click.option(
    "--lock", "with_lock", is_flag=True, help="Check its lock too: that it fits, and its wheels are complete."
)
@target_option
@json_option
def check(spec: Path, platform: str | None, *, with_lock: bool, as_json: bool) -> None:
    """Validate SPEC; no network is used."""
    from bundler.specfile import check_spec, load_spec

    loaded = load_spec(spec, platform=platform)
    check_spec(loaded)
    document = {"name": loaded.name, "version": loaded.version, "target": loaded.target.label, "digest": loaded.digest}
    text = f"{spec}: good ({loaded.name} {loaded.version} for {loaded.target.label})"
    if with_lock:
        count, extra = prove_lock(loaded)
        text += f"\n{loaded.lock_path}: complete, {count} wheels"
        text += f"; nothing needs {', '.join(extra)}" if extra else ""
        answer({**document, "wheels": count, "unneeded": extra}, text, as_json=as_json)
    else:
        answer(document, text, as_json=as_json)


@command("lock")
@click.argument("spec", type=PATH)
@click.option("--upgrade", is_flag=True, help="Take the newest versions instead of keeping the lock's.")
@click.option("--record", is_flag=True, help="Ask the models without network, and write their answers into the lock.")
@click.option("--resolver", type=click.Choice(["uv", "pip-tools"]), default="uv", show_default=True)
@click.option("--compare", is_flag=True, help="Only show where uv and pip-tools differ; nothing is written.")
@target_option
@json_option
def lock(
    spec: Path, platform: str | None, resolver: str, *, upgrade: bool, record: bool, compare: bool, as_json: bool
) -> None:
    """Resolve SPEC for its target, have every byte in the store, and write the lock beside it."""
    from bundler.lock import write_lock
    from bundler.specfile import load_spec

    loaded = load_spec(spec, platform=platform)
    if compare:
        answer_comparison(loaded, upgrade=upgrade, as_json=as_json)
        return
    made = current_lock(loaded) if record and not upgrade else None
    if made is None:
        made = make_lock(loaded, upgrade=upgrade, resolver=resolver)
        write_lock(loaded.lock_path, made)
    if record:
        made = record_lock(loaded, made)
        write_lock(loaded.lock_path, made)
    size = sum(file.size for file in made.all_files())
    document = {"lock": str(loaded.lock_path), "wheels": len(made.wheels), "models": len(made.models), "size": size}
    text = f"{loaded.lock_path}: {len(made.wheels)} wheels, {len(made.models)} models, {size_text(size)}"
    if record:
        recorded = sum(probe.expect is not None for probe in made.probes)
        document |= {"probes": len(made.probes), "recorded": recorded}
        text += f"\nanswers of {recorded} of {len(made.probes)} probes are recorded"
    answer(document, text, as_json=as_json)


@command("build")
@click.argument("spec", type=PATH)
@click.option(
    "--output",
    "outputs",
    type=PATH,
    multiple=True,
    metavar="DIR",
    help="Where bundle and kit are written; give it again for volumes that the first disk has no room for.",
)
@click.option("--volume-size", metavar="SIZE", help="Cut the bundle into volumes, of 4GiB for instance; or fat32.")
@click.option(
    "--base", type=PATH, metavar="OLD", help="Make a delta to this bundle or manifest.json, which is installed there."
)
@click.option("--key", metavar="FILE", help="OpenSSH Ed25519 private key to sign with, or agent:FINGERPRINT.")
@click.option("--unsigned", is_flag=True, help="Leave the slot empty, to be signed later.")
@click.option(
    "--identity", metavar="WHO", help="Who signs, as in the kit's allowed_signers. [default: KEY.pub's comment]"
)
@click.option("--no-rehearsal", is_flag=True, help="Don't install and ask the bundle before it is signed.")
@click.option(
    "--check", type=PATH, metavar="BUNDLE", help="Write nothing: rebuild, and compare with what somebody else built."
)
@volumes_option
@target_option
@json_option
def build(
    spec: Path,
    outputs: tuple[Path, ...],
    key: str | None,
    identity: str | None,
    platform: str | None,
    *,
    volume_size: str | None,
    base: Path | None,
    check: Path | None,
    volumes: tuple[Path, ...],
    unsigned: bool,
    no_rehearsal: bool,
    as_json: bool,
) -> None:
    """Build the bundle of SPEC and its kit; locks first where there is no lock yet."""
    from bundler.lock import load_lock, write_lock
    from bundler.review.diff import load_described
    from bundler.sealing.build import BuildOptions, build_bundle
    from bundler.sealing.volumes import parse_volume_size
    from bundler.specfile import load_spec
    from bundler.store import Store

    if check is not None:
        return answer_check(load_spec(spec, platform=platform), check, volumes, as_json=as_json)
    if not outputs:
        raise click.MissingParameter(param_hint="'--output'", param_type="option")
    if (key is None) != unsigned:
        raise UsageError("build takes --key FILE or --unsigned, one of the two", hint="bundler keygen makes a key")
    if len(outputs) > 1 and volume_size is None:
        raise UsageError("one tar goes to one --output", hint="--volume-size SIZE cuts it for several disks")
    loaded = load_spec(spec, platform=platform)
    signer = read_signer(key) if key is not None else None
    if not loaded.lock_path.exists():
        write_lock(loaded.lock_path, make_lock(loaded, upgrade=False))
    options = BuildOptions(
        output=outputs[0],
        signer=signer,
        identity=identity or identity_of(key, signer),
        rehearse=not no_rehearsal,
        more_outputs=outputs[1:],
        volume_size=parse_volume_size(volume_size) if volume_size is not None else None,
        base=load_described(base) if base is not None else None,
    )
    locked = load_lock(loaded.lock_path)
    built = build_bundle(loaded, locked, Store(), options, progress=progress("pack"), report=step)
    return answer_built(built, is_delta=base is not None, is_signed=signer is not None, as_json=as_json)


def answer_built(built: Any, *, is_delta: bool, is_signed: bool, as_json: bool) -> None:  # noqa: ANN401 # a Built, imported late
    """Say what a build wrote."""
    document = {
        "bundle": str(built.bundle),
        "kit": str(built.kit),
        "digest": built.digest,
        "kit_digest": built.kit_digest,
        "size": built.size,
    }
    document |= {"volumes": [str(path) for path in built.volumes]} if built.volumes else {}
    document |= {"left_out": built.left_out} if is_delta else {}
    document |= {"evidence": [str(path) for path in built.evidence]} if built.evidence else {}
    lines = [
        f"{built.bundle}  {size_text(built.size)}",
        *(str(path) for path in built.volumes[1:]),
        *([f"a delta: {built.left_out} files are left out"] if is_delta else []),
        f"{built.kit}  its digest, for the telephone: {built.kit_digest}",
        f"manifest digest {built.digest}",
        *([] if is_signed else ["not signed yet: bundler sign BUNDLE --key FILE"]),
        *rehearsal_lines(built),
    ]
    answer(document, "\n".join(lines), as_json=as_json)


def rehearsal_lines(built: Any) -> list[str]:  # noqa: ANN401 # a Built, imported late
    """Return a line that says what came of the rehearsal."""
    if built.rehearsal is None:
        return ["NOT rehearsed (--no-rehearsal)"]
    signed = "" if len(built.evidence) > 1 else ", not signed"
    what = "rehearsed" if built.rehearsal.rehearsed else "NOT rehearsed"
    return [f"{built.evidence[0]}  {what}{signed}"]


def answer_check(spec: Any, bundle: Path, volumes: tuple[Path, ...], *, as_json: bool) -> None:  # noqa: ANN401 # a Spec, imported late
    """Rebuild from a spec's lock, compare with a bundle, and say what could not be made again."""
    from bundler.lock import load_lock
    from bundler.sealing.rebuild import check_rebuild
    from bundler.store import Store
    from manifests.sources import Supply

    done = check_rebuild(
        spec,
        load_lock(spec.lock_path),
        Store(),
        bundle,
        Supply(folders=volumes),
        fetch=lambda: make_lock(spec, upgrade=False),
        progress=progress("compare"),
        report=step,
    )
    document = {"bundle": str(bundle), "digest": done.digest, "files": done.files, "taken": list(done.taken)}
    lines = [
        f"{bundle}: the same bytes as rebuilt from {spec.lock_path}, {done.files} files, {size_text(done.size)}",
        *(f"not made again here, taken from the bundle by its digest: {path}" for path in done.taken),
        f"manifest digest {done.digest}",
        f"to sign it, too: bundler sign {bundle} --key FILE",
    ]
    answer(document, "\n".join(lines), as_json=as_json)


@command("quickstart")
@click.option("--directory", type=PATH, default=Path("quickstart-demo"), show_default=True, metavar="DIR")
def quickstart(directory: Path) -> None:
    """Do the whole story on a small real bundle, with throw-away keys, in DIR."""
    from bundler.packages.resolver import UvResolver
    from bundler.quickstart import run_quickstart
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


def make_lock(spec: Any, *, upgrade: bool, resolver: str = "uv") -> Any:  # noqa: ANN401 # a Spec in, a Lock out; both imported late
    """Return a new lock of a spec; ``upgrade`` takes the newest versions instead of keeping the old lock's."""
    from bundler.lock import load_lock
    from bundler.rehearsal.answers import keep_answers
    from bundler.relock import lock_spec
    from bundler.store import Store

    previous = previous_lock(spec, upgrade=upgrade)
    made = lock_spec(spec, Store(), make_resolver(spec, resolver), pip_config(), previous=previous, report=step)
    if upgrade and spec.lock_path.exists():
        return keep_answers(made, load_lock(spec.lock_path), step)
    return made


def current_lock(spec: Any) -> Any:  # noqa: ANN401 # a Spec in, a Lock or None out; imported late
    """Return the lock of a spec if it fits the spec and this Sealift, and the store has all of it."""
    from bundler.lock import load_lock
    from bundler.quickstart import lock_is_current
    from bundler.store import Store

    found = load_lock(spec.lock_path) if spec.lock_path.exists() else None
    return found if found is not None and lock_is_current(found, spec, Store()) else None


def record_lock(spec: Any, lock: Any) -> Any:  # noqa: ANN401 # a Spec and a Lock in, a Lock out; imported late
    """Return a lock with the answers that its models give here."""
    from bundler.rehearsal.record import record_answers
    from bundler.store import Store

    return record_answers(spec, lock, Store(), progress=progress("pack"), report=step)


def prove_lock(spec: Any) -> tuple[int, list[str]]:  # noqa: ANN401 # a Spec, imported late
    """Return how many wheels the lock of a spec has, and which of them nothing needs, once they are proven complete."""
    from bundler.lock import load_lock
    from bundler.packages.completeness import check_lock_complete
    from bundler.relock import closure_roots
    from bundler.sealing.build import check_lock
    from bundler.store import Store

    lock = load_lock(spec.lock_path)
    check_lock(spec, lock)
    return len(lock.wheels), list(check_lock_complete(lock, closure_roots(spec, lock), Store()))


def answer_comparison(spec: Any, *, upgrade: bool, as_json: bool) -> None:  # noqa: ANN401 # a Spec, imported late
    """Print where uv and pip-tools differ about a spec; a difference is no error."""
    from bundler.packages.compare import compare_resolvers

    one, other = make_resolver(spec, "uv"), make_resolver(spec, "pip-tools")
    found = compare_resolvers(spec, one, other, previous=previous_lock(spec, upgrade=upgrade))
    answer(found.to_json(), found.to_text(), as_json=as_json)


def previous_lock(spec: Any, *, upgrade: bool) -> Any:  # noqa: ANN401 # a Spec in, a Lock or None out; imported late
    """Return the lock whose versions are to be kept, if there is one."""
    from bundler.lock import load_lock

    return load_lock(spec.lock_path) if spec.lock_path.exists() and not upgrade else None


def make_resolver(spec: Any, name: str) -> Any:  # noqa: ANN401 # a Spec in, a Resolver out; both imported late
    """Return the resolver of a name for a spec."""
    from bundler.packages.piptools import PipToolsResolver
    from bundler.packages.resolver import UvResolver
    from bundler.store import Store

    indexes = spec.packages.indexes
    if name == "pip-tools":
        return PipToolsResolver(config=pip_config(), store=Store(), indexes=indexes)
    return UvResolver(config=pip_config(), indexes=indexes)
