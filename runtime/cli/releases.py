"""Commands about what is installed: launch, status, rollback, gc, uninstall, repair."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import UsageError
from runtime.cli.media import add_volumes
from runtime.cli.registries import add_bundle, place, reached
from runtime.cli.serving import add_serving_options, serving_options
from runtime.cli.shared import Commands, add_command, add_prefix, add_trust, answer, say
from runtime.cli.trusting import choose_trust

if TYPE_CHECKING:
    from manifests.chunkfile import PieceSource
    from manifests.medium import Medium
    from runtime.layout import Release
    from runtime.repair import Repaired


def add_release_commands(commands: Commands) -> None:
    """Add them to the parser."""
    _add_launch(commands)
    _add_status(commands)
    _add_removal(commands)
    _add_repair(commands)


def _add_launch(commands: Commands) -> None:
    parser = add_command(commands, "launch", "Serve the models of the live release over the OpenAI API.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="which models; all by default")
    add_prefix(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    add_serving_options(parser)
    parser.set_defaults(command=_launch)


def _add_status(commands: Commands) -> None:
    parser = add_command(
        commands, "status", "Say what is installed, what is live, and what an installer left unfinished."
    )
    add_prefix(parser)
    parser.set_defaults(command=_status)
    back = add_command(commands, "rollback", "Make the release live again that was live before.")
    add_prefix(back)
    back.set_defaults(command=_rollback)


def _add_removal(commands: Commands) -> None:
    text = "Remove releases and files that nothing needs; what is live, the way back and what is in use stay."
    collect = add_command(commands, "gc", text)
    add_prefix(collect)
    text = "how many releases to keep besides the live one and the previous one (default: 0)"
    collect.add_argument("--keep", type=_count, default=0, metavar="N", help=text)
    collect.set_defaults(command=_gc)
    remove = add_command(commands, "uninstall", "Remove everything of ours; refused while anything is in use.")
    add_prefix(remove)
    text = "remove confirmed signers, revoked keys, changed settings and logs too"
    remove.add_argument("--purge", action="store_true", help=text)
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(command=_uninstall)


def _add_repair(commands: Commands) -> None:
    text = "Say what is damaged, installed or on a medium; fetch bad chunks from another copy, make environments anew."
    parser = add_command(commands, "repair", text)
    add_bundle(parser, optional=True)
    add_prefix(parser, required=False)
    text = "a bundle in any form, or a file that `bundler extract-chunks` made"
    parser.add_argument("--from", dest="source", type=place, metavar="FILE", help=text)
    parser.add_argument("--list", action="store_true", help="only say what is damaged")
    add_volumes(parser, waits=False)
    text = "skip the import test of an environment that is made anew"
    parser.add_argument("--no-smoke", action="store_true", help=text)
    add_trust(parser, "the prefix's own; needed for a BUNDLE")
    parser.set_defaults(command=_repair)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return int(text)


def _launch(arguments: argparse.Namespace) -> int:
    from runtime.launch import launch
    from runtime.layout import Prefix

    sys.stdout.flush()
    launch(
        Prefix(path=arguments.prefix.absolute()),
        arguments.models,
        host=arguments.host,
        port=arguments.port,
        options=serving_options(arguments),
        report=lambda note: say(f"note: {note}"),
    )
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    live = prefix.live()
    releases = list(prefix.all_releases())
    states = {release.name: _state_of(release, live) for release in releases}
    lines = [f"{state:10} {name}" for name, state in states.items()] or [f"nothing is installed in {prefix.path}"]
    answer(arguments, {"prefix": str(prefix.path), "live": live.name if live else None, "releases": states}, lines)
    if "in repair" in states.values():
        say(f"hint: a repair was not ended: runtime repair --prefix {prefix.path}")
    return 0


def _state_of(release: "Release", live: "Release | None") -> str:
    if live is not None and release.name == live.name:
        return "live"
    return "installed" if release.is_complete else "in repair" if release.in_repair else "unfinished"


def _rollback(arguments: argparse.Namespace) -> int:
    from runtime.install import rollback
    from runtime.layout import Prefix

    release = rollback(Prefix(path=arguments.prefix.absolute()))
    answer(arguments, {"release": release.name}, [f"{release.name} is live again"])
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    from manifests.progress import format_size
    from runtime.gc import collect
    from runtime.layout import Prefix

    done = collect(Prefix(path=arguments.prefix.absolute()), keep=arguments.keep)
    lines = [
        *(f"removed    {name}" for name in done.removed),
        *(f"{reason:10} {name}" for name, reason in done.kept.items()),
        f"{done.blobs} files removed from the store, {format_size(done.freed)} freed",
    ]
    document = {"removed": list(done.removed), "kept": done.kept, "blobs": done.blobs, "freed": done.freed}
    answer(arguments, document, lines)
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    from manifests.progress import format_size
    from runtime.gc import uninstall
    from runtime.layout import Prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    if not arguments.yes and not sys.stdin.isatty():
        raise UsageError("uninstall asks before it removes anything", hint="without a terminal: --yes")
    purge: bool = arguments.purge
    done = uninstall(
        prefix, confirm=lambda: None if arguments.yes else _ask_to_remove(prefix.path, purge=purge), purge=purge
    )
    lines = [f"removed, {format_size(done.freed)} freed", *(f"left: {prefix.path / name}" for name in done.left)]
    answer(arguments, {"prefix": str(prefix.path), "freed": done.freed, "left": list(done.left)}, lines)
    return 0


def _ask_to_remove(path: Path, *, purge: bool) -> None:
    what = "everything that is installed, its settings, signers and logs" if purge else "everything that is installed"
    print(f"Remove {what} in {path}? Type yes: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise UsageError("nothing was removed", hint="it takes the word yes")


def _repair(arguments: argparse.Namespace) -> int:
    import contextlib

    from manifests.chunkfile import open_pieces

    if (arguments.bundle is None) == (arguments.prefix is None):
        raise UsageError("repair takes a BUNDLE or --prefix DIR, one of the two", hint="runtime repair --help")
    if arguments.list and arguments.source:
        raise UsageError("repair takes --list or --from FILE, one of the two", hint="runtime repair --help")
    if arguments.source and arguments.bundle and not isinstance(arguments.bundle, Path):
        hint = "delete the blob there, then bundler push a good copy: only what the registry hasn't is sent"
        raise UsageError("a bundle in a registry isn't repaired in place; without --from it is only checked", hint=hint)
    with contextlib.ExitStack() as stack:
        source = None
        if arguments.source:
            source = stack.enter_context(open_pieces(reached(arguments.source, arguments)))
        found = _repair_bundle(arguments, source) if arguments.bundle else _repair_installed(arguments, source)
    return _answer_repair(arguments, found)


def _repair_bundle(arguments: argparse.Namespace, source: "PieceSource | None") -> "Repaired":
    from manifests.bundle import verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar
    from manifests.sources import Supply
    from runtime.repair_medium import repair_medium

    chosen = choose_trust(arguments, None)
    with open_medium(reached(arguments.bundle, arguments), Supply(folders=tuple(arguments.volumes))) as medium:
        bundle = verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)
        with ProgressBar("check", bundle.manifest.payload_size, sys.stderr) as progress:
            return repair_medium(bundle, source, progress)


def _repair_installed(arguments: argparse.Namespace, source: "PieceSource | None") -> "Repaired":
    from manifests.bundle import TrustedBundle, verify_trust
    from manifests.progress import ProgressBar
    from runtime.layout import Prefix, walk_files
    from runtime.rebuild import RebuildOptions
    from runtime.repair import repair_prefix, require_installed

    prefix = Prefix(path=arguments.prefix.absolute())
    require_installed(prefix)
    chosen = choose_trust(arguments, prefix)

    def verify(medium: "Medium") -> TrustedBundle:
        return verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)

    folders = (prefix.store, *(release.venv for release in prefix.all_releases()))
    size = sum((folder / name).lstat().st_size for folder in folders for name in walk_files(folder))
    rebuild = RebuildOptions(smoke=not arguments.no_smoke)
    with ProgressBar("check", size, sys.stderr) as progress:
        return repair_prefix(prefix, verify, source, progress, change=not arguments.list, rebuild=rebuild)


def _answer_repair(arguments: argparse.Namespace, found: "Repaired") -> int:
    rows = [
        {"path": d.piece.entry.path, "chunk": d.piece.index, "sha256": d.piece.sha256, "size": d.piece.size}
        for d in found.remaining
    ]
    lines = [f"{d.piece.sha256} {d.piece.size} {d.piece.label}" for d in found.remaining]
    lines += [f"# healed {name}" for name in (*found.healed, *found.manifests)]
    lines += [f"# put back {name}" for name in found.relinked]
    for name, problems in found.environments.items():
        lines += [f"# {name}: {problem}" for problem in problems]
    lines += [f"# made anew: the environment of {name}" for name in found.rebuilt]
    lines += [f"# not repaired {words}" for words in found.blocked]
    lines.append(f"# {len(found.damaged)} damaged chunks found, {len(found.remaining)} remain")
    document = {
        "damaged": rows,
        "found": len(found.damaged),
        "healed": [*found.healed, *found.manifests],
        "put_back": list(found.relinked),
        "blocked": list(found.blocked),
        "environments": {name: list(problems) for name, problems in found.environments.items()},
        "rebuilt": list(found.rebuilt),
    }
    answer(arguments, document, lines)
    if found.remaining:
        say("hint: bundler extract-chunks BUNDLE --chunks THIS-LIST --output FILE, then repair again with --from FILE")
    if found.environments.keys() - set(found.rebuilt) and not found.blocked:
        say("hint: to make them anew, the same without --list")
    return 0 if found.is_whole else 5
