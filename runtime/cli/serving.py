"""What has to do with a running server: the options of launch, and health."""

import argparse
from pathlib import Path

from manifests.errors import UsageError
from runtime.cli.shared import Commands, add_command, add_prefix, answer, positive, say


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Add the server's own options to ``launch``."""
    add = parser.add_argument
    add("--api-keys", type=Path, metavar="FILE", help="ask every client for one of the keys in this file, one a line")
    add("--on-demand", action="store_true", help="offer the release's other models too, loaded when asked for")
    text = "models loaded at once (default: all); the one used least recently makes room"
    add("--max-loaded", type=positive, metavar="N", help=text)
    add("--queue", type=positive, metavar="N", help="requests that may wait for a model (default: 64)")
    add("--max-body", type=positive, metavar="BYTES", help="largest request (default: 8 MiB)")
    add("--max-answer-tokens", type=positive, metavar="N", help="largest max_tokens (default: the context's)")
    add("--timeout", type=positive, metavar="SECONDS", help="longest answer, waiting included (default: 600)")
    add("--grace", type=positive, metavar="SECONDS", help="for requests in flight when stopping (default: 30)")
    _add_ray_options(parser)


def _add_ray_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "serve in one process, or on Ray where the release carries ray[serve] (default: process)"
    add("--engine", choices=("process", "ray"), default="process", help=text)
    add("--replicas", type=positive, metavar="N", help="with --engine ray: copies of the models (default: 1)")
    text = "with --engine ray: the running cluster to use (without: one of its own on this host)"
    add("--ray-address", metavar="HOST:PORT", help=text)
    text = "with --engine ray: be a node of a cluster: its head on --host and --port, or one more with --ray-address"
    add("--ray-node", action="store_true", help=text)


def serving_options(arguments: argparse.Namespace) -> list[str]:
    """Return those that were given, as the server takes them.

    Raises:
        UsageError: One of Ray's was given without ``--engine ray``, or doesn't go with another.
    """
    names = ("max_loaded", "queue", "max_body", "max_answer_tokens", "timeout", "grace", "replicas", "ray_address")
    _check_ray_options(arguments)
    options = ["--on-demand"] if arguments.on_demand else []
    options += ["--engine", "ray"] if arguments.engine == "ray" else []
    options += ["--ray-node"] if arguments.ray_node else []
    if arguments.api_keys is not None:
        options += ["--api-keys", str(arguments.api_keys.absolute())]
    for name in names:
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    return options


def _check_ray_options(arguments: argparse.Namespace) -> None:
    given = {"--replicas": arguments.replicas, "--ray-address": arguments.ray_address, "--ray-node": arguments.ray_node}
    first = next((name for name, value in given.items() if value), None)
    if first and arguments.engine != "ray":
        raise UsageError(f"{first} is for --engine ray", hint=f"runtime launch --engine ray {first} ...")
    if arguments.ray_node and (arguments.replicas or arguments.models):
        msg = "--ray-node starts a node without models: no MODEL and no --replicas"
        raise UsageError(msg, hint="give them to the launch that serves, with --ray-address")


def add_serving_commands(commands: Commands) -> None:
    """Add them to the parser."""
    text = "Say how this host, the installed release and its running servers are; loads nothing and changes nothing."
    parser = add_command(commands, "health", text)
    add_prefix(parser)
    parser.set_defaults(command=_health)


def _health(arguments: argparse.Namespace) -> int:
    from runtime.health import check_health
    from runtime.layout import Prefix

    checks = check_health(Prefix(path=arguments.prefix.absolute()))
    worst = next((check for check in checks if check.verdict == "failed"), None)
    width = max(len(check.name) for check in checks)
    lines = [f"{check.verdict:8} {check.name:{width}}  {check.found}" for check in checks]
    rows = [
        {"name": check.name, "verdict": check.verdict, "found": check.found, "details": dict(check.details)}
        for check in checks
    ]
    document: dict[str, object] = {"prefix": str(arguments.prefix.absolute()), "healthy": worst is None, "checks": rows}
    answer(arguments, document, lines)
    for check in checks:
        if check.remedy:
            say(f"hint: {check.name}: {check.remedy}")
    return worst.exit_code if worst else 0
