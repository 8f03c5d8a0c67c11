"""Ray itself: whether the release has it, its closed environment, a Ray of our own, and joining one that runs.

Nothing of Ray is imported before :func:`prepare_ray` has told it to keep quiet.
"""

import contextlib
import importlib
import importlib.util
import ipaddress
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

from manifests.errors import AdapterError, DiskError
from manifests.files import disk_error
from runtime.seal import install_guard

OBJECT_STORE_BYTES: Final = 128 << 20
"""Shared memory of a node. Requests and vectors pass through it, weights don't."""
REQUIREMENT: Final = "ray[serve]"
_HOOK: Final = "runtime.server.rayserve.cluster.guard_worker"
_LONGEST: Final = 40  # bytes of the folder's path: Ray puts sockets 64 bytes below it, and the system takes 107


def prefix_of(release: Path) -> Path:
    """Return the prefix in which a release lies."""
    return release.parent.parent


def prepare_ray(prefix: Path, environment: MutableMapping[str, str], *, joins: bool) -> None:
    """Refuse a release without Ray, and set what Ray reads when it is imported: no statistics, a token for everyone.

    Args:
        prefix: Where the release is installed; ``etc/ray-token`` below it is what admits to the cluster.
        environment: What to set it in, such as ``os.environ``.
        joins: Whether a running cluster is joined, whose token must be there already.

    Raises:
        AdapterError: The release doesn't carry ``ray[serve]``, or it has no token for the cluster.
        DiskError: The token can't be written.
    """
    for name in ("ray", "fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            msg = f"--engine ray needs {REQUIREMENT}, and this release has no {name}"
            hint = f'add "{REQUIREMENT}" to [packages] requirements of the spec; then bundler lock, build, install'
            raise AdapterError(msg, hint=hint)
    environment.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(_token(prefix / "etc" / "ray-token", joins=joins)),
            "RAY_COLOR_PREFIX": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
    )


def _token(path: Path, *, joins: bool) -> Path:
    """Return the file with the token, made where it may be."""
    if path.is_file():
        return path
    if joins:
        hint = f"copy the file of that name from the head node's prefix to {path}, mode 600"
        raise AdapterError(f"{path}: no token for the Ray cluster", hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise disk_error(error, f"create {path}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path


def guard_worker() -> None:
    """Refuse the network to a process of Ray's; Ray calls it before any work, on every node."""
    install_guard()


@contextlib.contextmanager
def cluster(prefix: Path, address: str | None, *, cpus: int) -> Iterator[Any]:
    """Yield Ray, connected to the cluster at ``address``, or to one of our own on loopback that ends with the context.

    Raises:
        AdapterError: Ray can't be started or reached.
    """
    ray = importlib.import_module("ray")
    with _folder(prefix) as folder:
        own = {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }
        shared = {"log_to_driver": True, "configure_logging": False, "namespace": "sealift"}
        shared["runtime_env"] = {"worker_process_setup_hook": _HOOK}
        try:
            ray.init(**({"address": address} if address else own), **shared)
        except Exception as error:
            msg = f"Ray can't be started or joined ({address or 'on this host'}): {type(error).__name__}: {error}"
            hint = "a node of that cluster must run on this host: runtime launch --engine ray --ray-node"
            raise AdapterError(msg, hint=hint if address else None) from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _folder(prefix: Path) -> Iterator[str]:
    """Yield a folder for sockets and logs of Ray's own; where the prefix's path is too long, a temporary one."""
    own = prefix / "var" / "ray"
    if len(os.fsencode(own)) <= _LONGEST:
        yield str(own)
        return
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def node_command(*, host: str, port: int, address: str | None, cpus: int, folder: Path) -> Sequence[str]:
    """Return the command of a node: the head on ``port`` without an ``address``, else one more of the cluster there.

    Raises:
        DiskError: The folder's path is too long for Ray's sockets.
    """
    flags = ["-I", *(["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else [])]
    words = [sys.executable, *flags, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    words += ["--node-ip-address", host, "--num-cpus", str(cpus), "--object-store-memory", str(OBJECT_STORE_BYTES)]
    if address:
        return [*words, "--address", address]
    if len(os.fsencode(folder)) > _LONGEST:
        msg = f"{folder}: the path is too long for Ray's sockets: {len(os.fsencode(folder))} bytes, at most {_LONGEST}"
        raise DiskError(msg, hint="install into a prefix with a shorter path")
    return [*words, "--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", str(folder)]


def is_wildcard(host: str) -> bool:
    """Whether an address stands for all of a host's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
