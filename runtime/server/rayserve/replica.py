"""One replica: the server's own application over the release on its node, loaded and probed before it is asked."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from manifests.digests import sha256_hex
from manifests.errors import AdapterError
from manifests.manifest import MANIFEST_NAME
from runtime.server.app import Limits, make_app
from runtime.server.keys import ApiKeys
from runtime.server.memory import prepare_memory
from runtime.server.models import load_models, load_probes, plan_offer
from runtime.server.service import Offer, Service

_LOG: Final = logging.getLogger("runtime.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """What every replica serves, on whichever node it is.

    Attributes:
        release: The release's folder, the same on every node.
        manifest_sha256: Of its manifest: a node with another release is refused.
        models: Names to load at the start; all where none is named.
        on_demand: Offer the others too.
        most: Models loaded at once; None for all.
        depth: Requests that may wait for each model.
        limits: Of one request.
        keys: A file of API keys, the same path on every node; None for none.
        threads: CPU threads.
    """

    release: Path
    manifest_sha256: str
    models: Sequence[str]
    on_demand: bool
    most: int | None
    depth: int
    limits: Limits
    keys: Path | None
    threads: int


def manifest_sha256(release: Path) -> str:
    """Return the digest of a release's manifest.

    Raises:
        AdapterError: There is none.
    """
    try:
        return sha256_hex((release / MANIFEST_NAME).read_bytes())
    except OSError as error:
        msg = f"{release}: no release on node {os.uname().nodename}: {error.strerror}"
        raise AdapterError(msg, hint="install the same bundle into the same prefix on every node") from None


class LoadedApp:
    """The application of a service that is loaded already; its end stops the service."""

    def __init__(self, service: Service, app: ASGIApp) -> None:
        self.service = service
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        self.service.stop()
        await send({"type": "lifespan.shutdown.complete"})


def load_app(plan: ReplicaPlan) -> LoadedApp:
    """Load the models and ask their probes; return when they have answered.

    Raises:
        AdapterError: Another release lies there, a model can't be loaded, or its probes fail.
    """
    found = manifest_sha256(plan.release)
    if found != plan.manifest_sha256:
        msg = f"{plan.release}: expected the manifest {plan.manifest_sha256[:12]}, got {found[:12]} on this node"
        raise AdapterError(msg, hint="install the same bundle into the same prefix on every node")
    _prepare(plan.threads)
    offered = plan_offer(load_models(plan.release), plan.models, on_demand=plan.on_demand, most=plan.most)
    offer = Offer(
        configs=offered.configs,
        preload=offered.preload,
        most=offered.most,
        depth=plan.depth,
        probes=load_probes(plan.release),
    )
    through = threading.Event()
    failures: list[Exception] = []

    def fail(error: Exception) -> None:
        failures.append(error)
        through.set()

    service = Service(offer, on_ready=through.set, on_failure=fail)
    service.start()
    through.wait()
    if failures:
        raise failures[0]
    keys = ApiKeys(plan.keys) if plan.keys else None
    return LoadedApp(service, make_app(service, limits=plan.limits, keys=keys))


def builder(plan: ReplicaPlan) -> Callable[[], LoadedApp]:
    """Return the function that a replica calls once; Ray Serve takes a function, and nothing else, for that."""

    def build() -> LoadedApp:
        return load_app(plan)

    return build


class Replica:
    """What Ray Serve asks about health; the application itself is the ingress."""

    app: LoadedApp

    def check_health(self) -> None:
        """Have Ray Serve replace this replica when the thread of a model has ended.

        Raises:
            AdapterError: It has.
        """
        if not self.app.service.healthy:
            raise AdapterError("a model's thread has ended; the replica's log has its traceback")


def _prepare(threads: int) -> None:
    import torch  # noqa: PLC0415 - after the allocator is told
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - as above

    prepare_memory(os.environ)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    _LOG.info("replica with %d threads", threads)
