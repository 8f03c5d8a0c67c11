"""The command that gives what is installed to other machines: mirror."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import UsageError
from runtime.cli.shared import Commands, add_command, add_prefix, add_trust, answer, say
from runtime.cli.trusting import choose_trust

if TYPE_CHECKING:
    from runtime.layout import Prefix
    from runtime.mirror.catalog import Catalog
    from runtime.verify import VerifyOptions


def add_mirror_command(commands: Commands) -> None:
    """Add ``mirror`` to the parser."""
    text = "Serve the releases' wheels as a package index and their models as a hub endpoint; read-only."
    parser = add_command(commands, "mirror", text)
    add_prefix(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8080, help="port to listen on (default: %(default)s)")
    text = "write static files and an nginx.conf there instead of serving"
    parser.add_argument("--export", type=Path, metavar="DIR", help=text)
    text = "with --export: copies instead of hard links to the prefix"
    parser.add_argument("--copy", action="store_true", help=text)
    text = "read every file once and compare its digest before anything is served"
    parser.add_argument("--check-digests", action="store_true", help=text)
    add_trust(parser, "the prefix's own")
    parser.set_defaults(command=_mirror)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text!r}")
    return int(text)


def _mirror(arguments: argparse.Namespace) -> int:
    from manifests.progress import ProgressBar
    from runtime.layout import Prefix
    from runtime.mirror.catalog import load_catalog
    from runtime.mirror.sources import open_releases, require_digests

    if arguments.copy and not arguments.export:
        raise UsageError("--copy is for --export", hint="runtime mirror --help")
    prefix = Prefix(path=arguments.prefix.absolute())
    options = _options(arguments, prefix)
    with open_releases(prefix, options, say) as releases:
        catalog = load_catalog(releases)
        for note in catalog.notes:
            say(f"note: {note}")
        if arguments.check_digests:
            with ProgressBar("check", sum(file.entry.size for file in catalog.files), sys.stderr) as progress:
                require_digests(catalog.files, progress)
        names = [release.name for release in releases]
        return _export(arguments, catalog, names) if arguments.export else _serve(arguments, catalog, names)


def _options(arguments: argparse.Namespace, prefix: "Prefix") -> "VerifyOptions":
    from runtime.state import record
    from runtime.verify import VerifyOptions

    prefix.require_live()
    chosen = choose_trust(arguments, prefix)
    if arguments.verify_time is not None:
        record(prefix, f"mirror: {chosen.time.note}")
    return VerifyOptions(
        trust=chosen.trust,
        trust_source=str(arguments.trust or prefix.path),
        now=chosen.time.now,
        threshold=arguments.signatures,
        depth="quick",
        models=False,
    )


def _contents(catalog: "Catalog", releases: list[str]) -> dict[str, object]:
    models = {name: list(each.revisions) for name, each in catalog.repositories.items()}
    return {"releases": releases, "wheels": len(catalog.wheels), "models": models}


def _serve(arguments: argparse.Namespace, catalog: "Catalog", releases: list[str]) -> int:
    from runtime.mirror.server import MirrorServer

    with MirrorServer((arguments.host, arguments.port), catalog, say) as server:
        address = f"http://{server.authority}"
        lines = [
            f"serving {', '.join(releases)} at {address}",
            f"package index: {address}/simple/ ({len(catalog.wheels)} wheels)",
            f"models: HF_ENDPOINT={address} ({', '.join(catalog.repositories) or 'none'})",
        ]
        answer(arguments, {"address": address, **_contents(catalog, releases)}, lines)
        if not arguments.host.startswith("127.") and arguments.host not in {"localhost", "::1"}:
            say("note: whoever reaches this address may read all of it; there is neither TLS nor a password")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        say("stopped")
    return 0


def _export(arguments: argparse.Namespace, catalog: "Catalog", releases: list[str]) -> int:
    from manifests.progress import ProgressBar
    from runtime.mirror.export import export

    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    listen = f"{host}:{arguments.port}"
    size = sum(file.entry.size for file in catalog.files)
    with ProgressBar("export", size, sys.stderr) as progress:
        done = export(catalog, arguments.export.absolute(), listen=listen, progress=progress, copy=arguments.copy)
    document = {"folder": str(done.folder), "linked": done.linked, "copied": done.copied}
    lines = [
        f"exported {', '.join(releases)} to {done.folder}: {done.linked} hard links, {done.copied} copies",
        f"nginx: include {done.folder / 'nginx.conf'} inside http {{ }}; it listens on {listen}",
    ]
    answer(arguments, document | _contents(catalog, releases), lines)
    return 0
