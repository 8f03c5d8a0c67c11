"""Starting the model server of the live release, sealed: offline environment, isolated interpreter, shared lock."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from manifests.errors import AdapterError, DiskError, UsageError
from manifests.fields import nearest_hint
from manifests.files import lock_descriptor, open_or_create
from manifests.manifest import Manifest
from runtime.layout import Prefix, Release, make_folder
from runtime.overrides import load_variables
from runtime.policy import check_contents, check_names
from runtime.seal import sealed_environment
from runtime.smoke import bytecode_folder

SERVER_MODULE: Final = "runtime.server"
SERVER_LOG: Final = "server.log"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchCommand:
    """What is to be executed: program and arguments, and the whole environment.

    ``notes`` says what of the operator's own variables has no effect.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]
    notes: tuple[str, ...] = ()


def server_command(prefix: Prefix, release: Release, module: str, options: Sequence[str]) -> LaunchCommand:
    """Return the command that runs a module of the release's venv in the sealed environment.

    Raises:
        UsageError: A line of the operator's own ``etc/offline.env`` can't be read.
        PolicyError: The signed policy refuses a file of a model.
    """
    manifest = release.manifest()
    check_names(manifest)
    check_contents(manifest, release.path)
    variables = load_variables(prefix, release)
    make_folder(prefix.var / "cache")
    arguments = (
        *(str(release.python), "-I", "-X", f"pycache_prefix={bytecode_folder(prefix, release)}"),
        *("-m", module, "--release", str(release.path), *options),
    )
    # A probe must compute its answers: one that was kept proves nothing.
    settings = {**variables.values, **({} if module == SERVER_MODULE else {"ENABLE_MODEL_CACHE": "false"})}
    environment = sealed_environment(os.environ, home=prefix.var / "run", cache=prefix.var / "cache", settings=settings)
    return LaunchCommand(arguments=arguments, environment=environment, notes=variables.notes)


def check_models(manifest: Manifest, names: Sequence[str]) -> None:
    """Refuse names that the release has no model for.

    Raises:
        UsageError: With the nearest name.
        AdapterError: The release has no models at all.
    """
    known = [model.name for model in manifest.models]
    if not known:
        raise AdapterError("the release has no models to launch")
    for name in names:
        if name not in known:
            raise UsageError(f"the release has no model {name!r}", hint=nearest_hint(name, known))


def launch(
    prefix: Prefix,
    models: Sequence[str],
    *,
    host: str,
    port: int,
    options: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Replace this process by the server. Returns only by raising; ``report`` is told what an operator should know.

    ``options`` are more of the server's own.

    Raises:
        UsageError: Nothing is installed, no such model, or an unusable line in ``etc/offline.env``.
    """
    release = hold_live(prefix)
    check_models(release.manifest(), models)
    told = ["--host", host, "--port", str(port), "--state", str(prefix.var / "run" / f"server-{port}.json")]
    for name in models:
        told += ["--model", name]
    told += [*_log_options(load_variables(prefix, release).values), *options]
    command = server_command(prefix, release, SERVER_MODULE, told)
    for note in command.notes:
        report(note)
    execute(prefix, command)


def execute(prefix: Prefix, command: LaunchCommand) -> NoReturn:
    """Replace this process, which holds the live release (:func:`hold_live`), by a command that uses it."""
    _hold_shared_lock(prefix.use_lock)
    os.chdir(prefix.var)
    os.execve(command.arguments[0], command.arguments, command.environment)  # noqa: S606 # no shell is the point


def _log_options(variables: Mapping[str, str]) -> list[str]:
    """Return the server's options for LOG_LEVEL, LOG_FILE and LOG_JSON.

    LOG_FILE is an application's own; two programs can't rotate one file, so the server's lies beside it.

    Raises:
        UsageError: One has a value that means nothing.
    """
    file, as_json = variables.get("LOG_FILE", ""), variables.get("LOG_JSON", "").strip().lower()
    if as_json not in {"", "true", "false", "1", "0", "yes", "no", "on", "off"}:
        raise UsageError(f"LOG_JSON: expected true or false, got {as_json!r}", hint="see etc/offline.env")
    options = _log_level(variables.get("LOG_LEVEL", ""))
    options += ["--log-file", str(Path(file).parent / SERVER_LOG)] if file else []
    return [*options, *(["--log-json"] if as_json in {"true", "1", "yes", "on"} else [])]


def _log_level(value: str) -> list[str]:
    """Return the server's option for the variable LOG_LEVEL.

    Raises:
        UsageError: It is none of the levels.
    """
    if value and value.lower() not in LOG_LEVELS:
        raise UsageError(
            f"LOG_LEVEL: expected one of {', '.join(LOG_LEVELS)}, got {value!r}", hint="see etc/offline.env"
        )
    return ["--log-level", value.lower()] if value else []


def hold_live(prefix: Prefix) -> Release:
    """Return the live release, held so that gc doesn't remove it; the lock lives on in what is executed.

    Raises:
        UsageError: Nothing is installed.
        DiskError: It is being removed or repaired.
    """
    while True:
        release = prefix.require_live()
        try:
            descriptor = release.hold()
        except FileNotFoundError:
            continue  # removed since: something else is live now
        if descriptor is None:
            hint = f"runtime status --prefix {prefix.path}"
            raise DiskError(f"{release.path}: is being removed or repaired", hint=hint)
        if release.is_complete:
            os.set_inheritable(descriptor, True)
            return release
        os.close(descriptor)


def _hold_shared_lock(path: Path) -> None:
    """Take the shared lock that gc and uninstall respect; it lives on in the server, whose descriptor it is."""
    descriptor = open_or_create(path, mode=0o644)
    lock_descriptor(descriptor, exclusive=False, blocking=True)
    os.set_inheritable(descriptor, True)
