"""``python -m runtime.server``: serve an installed release's models. Importing this module imports nothing heavy."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from manifests.errors import SealiftError
from runtime.seal import guard_installed, seal_process
from runtime.server.logs import make_handlers, quiet_third_parties
from runtime.server.memory import prepare_memory

if TYPE_CHECKING:
    from runtime.server.keys import ApiKeys
    from runtime.server.service import Service

_LOG: Final = logging.getLogger("runtime.server")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; the one place of this package that prints and configures logging."""
    arguments = _parser().parse_args(argv)
    level = getattr(logging, arguments.log_level.upper())
    handlers, problem = make_handlers(sys.stderr, arguments.log_file, as_json=arguments.log_json)
    logging.basicConfig(level=level, handlers=handlers)
    quiet_third_parties(level)
    if problem:
        _LOG.warning("%s", problem)
    prepare_memory(os.environ)
    if not guard_installed():
        default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        seal_process(cache=arguments.cache or default, allowed=arguments.allow)
    try:
        _serve_on_ray(arguments) if arguments.engine == "ray" else _serve(arguments)
    except SealiftError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    from runtime.server.keys import ApiKeys  # noqa: PLC0415 - after the seal
    from runtime.server.listening import Server, bind, is_loopback, url_of  # noqa: PLC0415 - after the seal
    from runtime.server.models import load_models, load_probes, plan_offer  # noqa: PLC0415 - after the seal

    keys = ApiKeys(arguments.api_keys) if arguments.api_keys else None
    configs = load_models(arguments.release)
    plan = plan_offer(configs, arguments.model, on_demand=arguments.on_demand, most=arguments.max_loaded)
    failures: list[Exception] = []
    with bind(arguments.host, arguments.port) as listener:
        _warn(keys, is_local=is_loopback(listener))
        _prepare_libraries()
        from runtime.server.app import Limits, make_app  # noqa: PLC0415 - imports torch, after the seal and the port
        from runtime.server.presence import announced, presence_of  # noqa: PLC0415 - as above
        from runtime.server.service import Offer, Service  # noqa: PLC0415 - as above

        url = url_of(listener)

        def fail(error: Exception) -> None:
            failures.append(error)
            server.stop()

        def announce() -> None:
            presence.update(presence_of(service, url, arguments.release))
            print(json.dumps({"event": "ready", "url": url, "models": list(plan.preload)}), flush=True)

        def reload() -> None:
            _reload(service, keys, arguments.release)
            presence.update(presence_of(service, url, arguments.release))

        offer = Offer(
            configs=plan.configs,
            preload=plan.preload,
            most=plan.most,
            depth=arguments.queue,
            probes=load_probes(arguments.release),
        )
        service = Service(offer, on_ready=announce, on_failure=fail)
        limits = Limits(
            body_bytes=arguments.max_body, seconds=arguments.timeout, answer_tokens=arguments.max_answer_tokens
        )
        server = Server(make_app(service, limits=limits, keys=keys), grace=arguments.grace, on_reload=reload)
        with announced(arguments.state, url) as presence:
            server.run(listener)
    if failures:
        raise failures[0]


def _serve_on_ray(arguments: argparse.Namespace) -> None:
    from runtime.server.keys import ApiKeys  # noqa: PLC0415 - after the seal
    from runtime.server.rayserve.serving import (  # noqa: PLC0415 - after the seal
        RayRequest,
        plan_of,
        run_node,
        serve_on_ray,
    )

    if arguments.ray_node:
        run_node(arguments.release, host=arguments.host, port=arguments.port, address=arguments.ray_address)
        return
    _warn(ApiKeys(arguments.api_keys) if arguments.api_keys else None, is_local=arguments.host in _LOOPBACK)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    asked = RayRequest(
        host=arguments.host,
        port=arguments.port,
        replicas=arguments.replicas,
        address=arguments.ray_address,
        threads=int(threads) if threads.isdecimal() else None,
        grace=arguments.grace,
        state=arguments.state,
    )
    serve_on_ray(asked, plan_of(arguments), lambda event: print(json.dumps(event), flush=True))


def _warn(keys: "ApiKeys | None", *, is_local: bool) -> None:
    if keys is None and not is_local:
        _LOG.warning("listening beyond this host without API keys: whoever reaches the port may ask; see --api-keys")
    if keys is not None and keys.is_exposed:
        _LOG.warning("%s: other users of this host may read the keys: chmod 600 %s", keys.path, keys.path)


def _reload(service: "Service", keys: "ApiKeys | None", release: Path) -> None:
    """Read settings and keys again; what is wrong in them leaves everything as it was."""
    from runtime.server.models import load_models  # noqa: PLC0415 - after the seal

    try:
        if keys is not None:
            keys.reload()
        service.reload(load_models(release))
    except SealiftError as error:
        _LOG.error("nothing was reloaded: %s", error.message)
    else:
        _LOG.info("reloaded")


def _prepare_libraries() -> None:
    import torch  # noqa: PLC0415 - after the seal
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - after the seal

    from runtime.host import usable_cores  # noqa: PLC0415 - after the seal

    transformers_logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.server", description="Serve a release's models.")
    add = parser.add_argument
    add("--release", type=Path, required=True, help="the release's folder, with manifest.json in it")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port to listen on, 0 for any (default: %(default)s)")
    add("--model", action="append", default=[], metavar="NAME", help="serve this one only; repeatable")
    add("--on-demand", action="store_true", help="offer the release's other models too, loaded when asked for")
    add("--max-loaded", type=_positive, metavar="N", help="models loaded at once; the least recently used one goes")
    add("--api-keys", type=Path, metavar="FILE", help="ask for one of the keys in this file")
    add("--allow", action="append", default=[], metavar="HOST[:PORT]", help="open one address; repeatable")
    add("--queue", type=_positive, default=64, help="requests that may wait for a model (default: 64)")
    add("--max-body", type=_positive, default=8 << 20, help="largest body in bytes (default: 8 MiB)")
    add("--max-answer-tokens", type=_positive, metavar="N", help="largest max_tokens (default: the context's)")
    add("--timeout", type=_positive, default=600, metavar="SECONDS", help="longest answer (default: 600)")
    add("--grace", type=int, default=30, help="seconds for requests in flight when stopping (default: 30)")
    add("--cache", type=Path, help="a writable folder for libraries that want one")
    add("--state", type=Path, metavar="FILE", help="say there what is served, for runtime health")
    add("--engine", choices=("process", "ray"), default="process", help="serve in this process, or by replicas on Ray")
    add("--replicas", type=_positive, default=1, metavar="N", help="on Ray: copies of the models (default: 1)")
    add("--ray-address", metavar="HOST:PORT", help="on Ray: the running cluster to use")
    add("--ray-node", action="store_true", help="on Ray: be a node of a cluster, and serve nothing")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    add("--log-file", type=Path, metavar="FILE", help="log there too; rotates at 10 MiB")
    add("--log-json", action="store_true", help="log JSON lines")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
