"""Commands about what is installed: launch, status, rollback, gc, uninstall, repair."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import UsageError
from runtime.cli.shared import Commands, add_command, add_prefix, add_trust, answer, say
from runtime.cli.trusting import choose_trust

if TYPE_CHECKING:
    from manifests.chunkfile import PieceSource
    from manifests.medium import Medium
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
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(command=_uninstall)


def _add_repair(commands: Commands) -> None:
    text = "Say which chunks are damaged, installed or on a medium, and fetch just those from another copy."
    parser = add_command(commands, "repair", text)
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE")
    add_prefix(parser, required=False)
    text = "a bundle, its folder, or a file that `bundler extract-chunks` made"
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help=text)
    parser.add_argument("--list", action="store_true", help="only say what is damaged")
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
    launch(Prefix(path=arguments.prefix.absolute()), arguments.models, host=arguments.host, port=arguments.port)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    live = prefix.live()
    releases = list(prefix.all_releases())
    states = {
        r.name: "live" if live and r.name == live.name else "installed" if r.is_complete else "unfinished"
        for r in releases
    }
    lines = [f"{state:10} {name}" for name, state in states.items()] or [f"nothing is installed in {prefix.path}"]
    answer(arguments, {"prefix": str(prefix.path), "live": live.name if live else None, "releases": states}, lines)
    return 0


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
    done = uninstall(prefix, confirm=lambda: None if arguments.yes else _ask_to_remove(prefix.path))
    lines = [f"removed, {format_size(done.freed)} freed", *(f"left: {prefix.path / name}" for name in done.left)]
    answer(arguments, {"prefix": str(prefix.path), "freed": done.freed, "left": list(done.left)}, lines)
    return 0


def _ask_to_remove(path: Path) -> None:
    print(f"Remove everything that is installed in {path}? Type yes: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise UsageError("nothing was removed", hint="it takes the word yes")


def _repair(arguments: argparse.Namespace) -> int:
    import contextlib

    from manifests.chunkfile import open_pieces

    if (arguments.bundle is None) == (arguments.prefix is None):
        raise UsageError("repair takes a BUNDLE or --prefix DIR, one of the two", hint="runtime repair --help")
    if arguments.list and arguments.source:
        raise UsageError("repair takes --list or --from FILE, one of the two", hint="runtime repair --help")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_pieces(arguments.source)) if arguments.source else None
        found = _repair_bundle(arguments, source) if arguments.bundle else _repair_installed(arguments, source)
    return _answer_repair(arguments, found)


def _repair_bundle(arguments: argparse.Namespace, source: "PieceSource | None") -> "Repaired":
    from manifests.bundle import verify_trust
    from manifests.medium import open_medium
    from manifests.progress import ProgressBar
    from runtime.repair import repair_medium

    chosen = choose_trust(arguments, None)
    with open_medium(arguments.bundle) as medium:
        bundle = verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)
        with ProgressBar("check", bundle.manifest.payload_size, sys.stderr) as progress:
            return repair_medium(bundle, arguments.bundle, source, progress)


def _repair_installed(arguments: argparse.Namespace, source: "PieceSource | None") -> "Repaired":
    from manifests.bundle import TrustedBundle, verify_trust
    from manifests.progress import ProgressBar
    from runtime.layout import Prefix, walk_files
    from runtime.repair import repair_prefix

    prefix = Prefix(path=arguments.prefix.absolute())
    prefix.require_live()
    chosen = choose_trust(arguments, prefix)

    def verify(medium: "Medium") -> TrustedBundle:
        return verify_trust(medium, chosen.trust, threshold=arguments.signatures, now=chosen.time.now)

    size = sum((prefix.store / name).lstat().st_size for name in walk_files(prefix.store))
    with ProgressBar("check", size, sys.stderr) as progress:
        return repair_prefix(prefix, verify, source, progress, change=not arguments.list)


def _answer_repair(arguments: argparse.Namespace, found: "Repaired") -> int:
    rows = [
        {"path": d.piece.entry.path, "chunk": d.piece.index, "sha256": d.piece.sha256, "size": d.piece.size}
        for d in found.remaining
    ]
    lines = [f"{d.piece.sha256} {d.piece.size} {d.piece.label}" for d in found.remaining]
    lines += [f"# healed {name}" for name in (*found.healed, *found.manifests)]
    lines += [f"# put back {name}" for name in found.relinked]
    lines += [f"# not repaired {words}" for words in found.blocked]
    lines.append(f"# {len(found.damaged)} damaged chunks found, {len(found.remaining)} remain")
    document = {
        "damaged": rows,
        "found": len(found.damaged),
        "healed": [*found.healed, *found.manifests],
        "put_back": list(found.relinked),
        "blocked": list(found.blocked),
    }
    answer(arguments, document, lines)
    if found.remaining:
        say("hint: bundler extract-chunks BUNDLE --chunks THIS-LIST --output FILE, then repair again with --from FILE")
    return 5 if found.remaining or found.blocked else 0
