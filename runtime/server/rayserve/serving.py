"""Deploying the replicas and staying until told to stop."""

import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from manifests.errors import AdapterError
from runtime.host import usable_cores
from runtime.server.app import Limits
from runtime.server.listening import bind, url_of
from runtime.server.models import load_models, plan_offer
from runtime.server.presence import announced
from runtime.server.rayserve.cluster import cluster, is_wildcard, node_command, prefix_of, prepare_ray
from runtime.server.rayserve.replica import Replica, ReplicaPlan, builder, manifest_sha256

NAME: Final = "sealift"
_LOG: Final = logging.getLogger("runtime.server")
_TRIES: Final = 1
_ONGOING: Final = 4096  # requests at a replica: its own queues refuse what is too much, with 429, before Ray Serve does


@dataclass(frozen=True, slots=True, kw_only=True)
class RayRequest:
    """Where to serve, and with how many replicas; ``threads`` of each, None divides the cluster's cores."""

    host: str
    port: int
    replicas: int
    address: str | None
    threads: int | None
    grace: int
    state: Path | None


def serve_on_ray(
    asked: RayRequest, plan: Callable[[int], ReplicaPlan], announce: Callable[[Mapping[str, object]], None]
) -> None:
    """Serve until SIGTERM or SIGINT; ``announce`` is told when every replica has loaded and answered.

    Args:
        asked: Where and how many.
        plan: Returns what each replica serves, with so many CPU threads.
        announce: Gets the event ``ready``, the URL and the models.

    Raises:
        AdapterError: No Ray, no free port, or the replicas can't be started.
    """
    stop = threading.Event()
    _on_stop(stop)
    signal.signal(signal.SIGHUP, lambda _number, _frame: _LOG.warning("settings aren't read again on Ray: restart"))
    first = plan(1)
    offered = plan_offer(load_models(first.release), first.models, on_demand=first.on_demand, most=first.most)
    prefix = prefix_of(first.release)
    prepare_ray(prefix, os.environ, joins=asked.address is not None)
    with bind(asked.host, asked.port) as listener:  # a port that is taken is known before anything starts
        url, port = url_of(listener), listener.getsockname()[1]
    with announced(asked.state, url) as presence, cluster(prefix, asked.address, cpus=usable_cores()) as ray:
        _on_stop(stop)  # Ray has put its own in their place, which print a stack
        _require_place(ray, asked)
        threads = asked.threads or max(1, int(ray.cluster_resources().get("CPU", 1)) // asked.replicas)
        handle = _deploy(asked, plan(threads), port)
        try:
            ready = {"event": "ready", "url": url, "models": list(offered.preload), "replicas": asked.replicas}
            presence.update({"pid": os.getpid(), "url": url, "ready": True, "release": str(first.release)})
            announce(ready)
            stop.wait()
        finally:
            handle.delete(NAME)
            handle.shutdown()


def _on_stop(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())


def _require_place(ray: Any, asked: RayRequest) -> None:  # noqa: ANN401 - Ray's module
    """Refuse an address that Ray Serve can't listen on: one address is the head's, a wildcard every node's."""
    own = ray.get_runtime_context().get_node_id()
    head = next((node for node in ray.nodes() if "node:__internal_head__" in node["Resources"]), None)
    if head is not None and head["NodeID"] != own and not is_wildcard(asked.host):
        msg = f"--host {asked.host}: Ray's head is on another host, {head['NodeManagerAddress']}"
        raise AdapterError(msg, hint="launch on the head's host, or with --host 0.0.0.0 on every node")


def _deploy(asked: RayRequest, plan: ReplicaPlan, port: int) -> Any:  # noqa: ANN401 - Ray Serve's module
    """Start the proxies and the replicas; return Ray Serve when all replicas answer.

    Raises:
        AdapterError: They don't.
    """
    serve = importlib.import_module("ray.serve")
    location = "EveryNode" if is_wildcard(asked.host) else "HeadOnly"
    serve.start(proxy_location=location, http_options={"host": asked.host, "port": port})
    replica = serve.deployment(
        serve.ingress(builder(plan))(Replica),
        name="replica",
        num_replicas=asked.replicas,
        max_ongoing_requests=_ONGOING,
        max_constructor_retry_count=_TRIES,
        graceful_shutdown_timeout_s=float(asked.grace),
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": plan.threads},
    )
    try:
        serve.run(replica.bind(), name=NAME, route_prefix="/")
    except Exception as error:
        text = _reason(serve) or f"{type(error).__name__}: {error}"
        serve.shutdown()
        raise AdapterError(f"the replicas on Ray can't be started: {text}") from error
    return serve


def _reason(serve: Any) -> str:  # noqa: ANN401 - Ray Serve's module
    """Return what the deployment says: the last line of the replica's traceback, which is our own message."""
    found = serve.status().applications.get(NAME)
    texts = [deployment.message for deployment in found.deployments.values()] if found else []
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("manifests.errors.")]
    return ours[-1].partition(": ")[2] if ours else "\n".join(lines[-6:])


def run_node(release: Path, *, host: str, port: int, address: str | None) -> None:
    """Replace this process by a node of a Ray cluster. Returns only by raising.

    Raises:
        AdapterError: No Ray, or no token for the cluster.
        DiskError: The prefix's path is too long.
    """
    prefix = prefix_of(release)
    manifest_sha256(release)
    prepare_ray(prefix, os.environ, joins=address is not None)
    words = list(
        node_command(host=host, port=port, address=address, cpus=usable_cores(), folder=prefix / "var" / "ray")
    )
    os.execve(words[0], words, dict(os.environ))  # noqa: S606 # no shell is the point


def plan_of(arguments: Any) -> Callable[[int], ReplicaPlan]:  # noqa: ANN401 - argparse's namespace
    """Return what the server's own options ask of each replica."""
    limits = Limits(body_bytes=arguments.max_body, seconds=arguments.timeout, answer_tokens=arguments.max_answer_tokens)
    digest = manifest_sha256(arguments.release)

    def plan(threads: int) -> ReplicaPlan:
        return ReplicaPlan(
            release=arguments.release,
            manifest_sha256=digest,
            models=tuple(arguments.model),
            on_demand=arguments.on_demand,
            most=arguments.max_loaded,
            depth=arguments.queue,
            limits=limits,
            keys=arguments.api_keys,
            threads=threads,
        )

    return plan
