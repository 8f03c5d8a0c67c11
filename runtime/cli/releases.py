"""Commands about what is installed: launch, status, rollback."""

import argparse
import sys

from runtime.cli.shared import Commands, add_command, add_prefix, answer


def add_release_commands(commands: Commands) -> None:
    """Add them to the parser."""
    _add_launch(commands)
    _add_status(commands)


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
