"""``python -m runtime.server``: serve an installed release's models. Importing this module imports nothing heavy."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from manifests.errors import SealiftError
from runtime.seal import guard_installed, seal_process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; the one place of this package that prints and configures logging."""
    arguments = _parser().parse_args(argv)
    level = getattr(logging, arguments.log_level.upper())
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not guard_installed():
        default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        seal_process(cache=arguments.cache or default, allowed=arguments.allow)
    try:
        _serve(arguments)
    except SealiftError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    from runtime.server.listening import Server, bind, url_of  # noqa: PLC0415 - after the seal
    from runtime.server.models import choose_models, load_models  # noqa: PLC0415 - after the seal

    configs = choose_models(load_models(arguments.release), arguments.model)
    failures: list[Exception] = []
    with bind(arguments.host, arguments.port) as listener:
        _prepare_libraries()
        from runtime.server.app import make_app  # noqa: PLC0415 - imports torch, after the seal and the port
        from runtime.server.service import Service  # noqa: PLC0415 - as above

        url = url_of(listener)

        def fail(error: Exception) -> None:
            failures.append(error)
            server.stop()

        def announce() -> None:
            names = [config.name for config in configs]
            print(json.dumps({"event": "ready", "url": url, "models": names}), flush=True)

        service = Service(configs, depth=arguments.queue, on_ready=announce, on_failure=fail)
        server = Server(make_app(service, max_body=arguments.max_body), grace=arguments.grace)
        server.run(listener)
    if failures:
        raise failures[0]


def _prepare_libraries() -> None:
    import torch  # noqa: PLC0415 - after the seal
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - after the seal

    from runtime.adapters.hardware import usable_cores  # noqa: PLC0415 - after the seal

    transformers_logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.server", description="Serve a release's models.")
    parser.add_argument("--release", type=Path, required=True, help="the release's folder, with manifest.json in it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any (default: %(default)s)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="serve this one only; repeatable")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="HOST[:PORT]", help="open one address; repeatable"
    )
    parser.add_argument("--queue", type=_positive, default=64, help="requests that may wait for a model (default: 64)")
    parser.add_argument("--max-body", type=_positive, default=8 << 20, help="largest body in bytes (default: 8 MiB)")
    parser.add_argument(
        "--grace", type=int, default=30, help="seconds for requests in flight when stopping (default: 30)"
    )
    parser.add_argument("--cache", type=Path, help="a writable folder for libraries that want one")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
