"""The seal of a launched process: a closed environment, and a guard that refuses the network.

Standard library only and imported before anything else, because ``huggingface_hub`` reads its switches at import.
Native code that opens sockets without CPython (hf-xet, grpc) is not seen by an audit hook: the closed network stays the
real wall, this one finds out who knocks.
"""

import atexit
import ipaddress
import os
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OFFLINE_VARIABLES: Final[Mapping[str, str]] = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "RAGAS_DO_NOT_TRACK": "true",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "disabled",
}
"""What keeps the usual libraries from trying the network at all."""

_KEPT: Final = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "TERM", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"}
    | {"LD_LIBRARY_PATH", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NOTIFY_SOCKET"}
)
_KEPT_PREFIXES: Final = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "PYTORCH_", "SEALIFT_")
_SETTINGS: Final = "SEALIFT_SETTINGS"  # names the variables that a launch added, for the process to keep
_NAME_EVENTS: Final = frozenset(
    {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
)
_ADDRESS_EVENTS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_LOOPBACK_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
_REMEMBERED: Final = 100
_FRAMES: Final = 6
_LIBRARY: Final = os.path.dirname(os.__file__)  # noqa: PTH120 # a frame's file name is text, and this runs at any time
_LIBRARIES: Final = re.compile(r"^.*?[/\\](?:site-packages|lib[/\\]python3\.[0-9]+)[/\\](?!site-packages)")
_FOLDERS: Final = re.compile(r"^/.*/(?=[^/]*:[0-9]+ in )")


def passes(name: str) -> bool:
    """Whether a variable of the caller's may reach a launched process."""
    return name in _KEPT or name.startswith(_KEPT_PREFIXES)


def sealed_environment(
    base: Mapping[str, str], *, home: Path, cache: Path, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment that a launched process gets.

    It is built from a list of what may pass (search path, locale, time zone, accelerator and thread settings), so
    tokens, proxies, ``PYTHON*``, ``PIP_*``, ``UV_*`` and ``LD_PRELOAD`` are left behind without having to be known.

    Args:
        base: The environment to start from, such as ``os.environ``.
        home: What HOME becomes, so that no dotfile of the operator's takes part.
        cache: A writable folder; libraries keep what they must below it.
        settings: Variables of the release and of its operator; None keeps those that an earlier seal let in.
    """
    kept = {name: value for name, value in base.items() if passes(name) and name != _SETTINGS}
    if settings is None:
        names = (name for name in base.get(_SETTINGS, "").split(",") if name)
        settings = {name: base[name] for name in names if name in base}
    told = {**settings, _SETTINGS: ",".join(sorted(settings))} if settings else {}
    own = {
        "HOME": str(home),
        "HF_HOME": str(cache / "huggingface"),
        "HF_MODULES_CACHE": str(cache / "huggingface" / "modules"),
        "XDG_CACHE_HOME": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    return {**kept, **told, **OFFLINE_VARIABLES, **own}


def cache_of(environment: Mapping[str, str]) -> Path:
    """Return the folder for caches that this process was given; else one that goes when the process ends."""
    if given := environment.get("XDG_CACHE_HOME"):
        return Path(given)
    made = tempfile.mkdtemp(prefix="sealift-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One refused try: the audit event, the address, and ``file:line in function`` of the callers, nearest first.

    Where the nearest six are all of the standard library, the nearest two of others follow them.
    """

    event: str
    address: str
    callers: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return it for a report: the callers' files as seen from where modules lie, since the rest is of this host."""
        callers = [_FOLDERS.sub("", _LIBRARIES.sub("", caller)) for caller in self.callers]
        return {"event": self.event, "address": self.address, "callers": callers}


class NetworkRefusedError(PermissionError):
    """Something in this process tried to reach an address that the operator didn't open."""

    def __init__(self, attempt: Attempt) -> None:
        callers = " < ".join(attempt.callers) or "unknown"
        super().__init__(f"sealed: {attempt.event} to {attempt.address} is refused (called from {callers})")
        self.attempt = attempt


class _Guard:
    """The state of the one hook of this process; hooks can't be removed, so there is never a second."""

    def __init__(self) -> None:
        self.installed = False
        self.allowed: frozenset[str] = frozenset()
        self.count = 0
        self.recent: list[Attempt] = []
        self.lock = threading.Lock()

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        if not event.startswith("socket."):
            return
        if event in _NAME_EVENTS:
            self._check(event, args[:2])
        elif event in _ADDRESS_EVENTS and len(args) > 1:
            self._check_address(event, args[1])

    def _check_address(self, event: str, address: object) -> None:
        if isinstance(address, tuple) and address:  # AF_UNIX addresses are str or bytes, a connected socket's is None
            self._check(event, address[:2])

    def _check(self, event: str, target: tuple[object, ...]) -> None:
        host = _host_text(target[0])
        port = target[1] if len(target) > 1 and isinstance(target[1], int | str) else None
        if _is_local(host) or host in self.allowed or f"{host}:{port}" in self.allowed:
            return
        attempt = Attempt(event=event, address=host if port is None else f"{host}:{port}", callers=_callers())
        with self.lock:
            self.count += 1
            self.recent = [*self.recent, attempt][-_REMEMBERED:]
        raise NetworkRefusedError(attempt)


_GUARD: Final = _Guard()


def install_guard(allowed: Collection[str] = ()) -> None:
    """Refuse every connect, send and name look-up of this process that doesn't stay on this host.

    Loopback addresses, ``localhost``, unix sockets and ``bind`` are free; this host's other addresses and names aren't.
    Installing again only replaces ``allowed``.

    Args:
        allowed: Hosts, or ``host:port`` pairs, that the operator opened. A name opens its look-up alone: the address it
            stands for is a connection of its own and has to be listed too.
    """
    with _GUARD.lock:
        _GUARD.allowed = frozenset(allowed)
        if not _GUARD.installed:
            _GUARD.installed = True
            sys.addaudithook(_GUARD.audit)


def guard_installed() -> bool:
    """Whether this process is guarded."""
    return _GUARD.installed


def attempts() -> tuple[Attempt, ...]:
    """Return the refused tries, oldest first; only the last hundred are remembered (see :func:`attempt_count`)."""
    with _GUARD.lock:
        return tuple(_GUARD.recent)


def attempt_count() -> int:
    """Return how many tries were refused since the guard was installed."""
    return _GUARD.count


def seal_process(*, cache: Path, allowed: Collection[str] = ()) -> None:
    """Seal the running process, environment and guard both; to be called before anything else is imported."""
    home = Path(os.environ.get("HOME", "/"))
    sealed = sealed_environment(os.environ, home=home, cache=cache)
    os.environ.clear()
    os.environ.update(sealed)
    install_guard(allowed)


def _host_text(host: object) -> str:
    if isinstance(host, bytes | bytearray):
        return bytes(host).decode("ascii", "backslashreplace")
    if isinstance(host, tuple):  # getnameinfo passes the whole socket address
        return _host_text(host[0]) if host else ""
    return "" if host is None else str(host)


def _is_local(host: str) -> bool:
    if host in {"", "0.0.0.0", "::"} or host.lower() in _LOOPBACK_NAMES:  # noqa: S104 - compared, never bound
        return True  # no host, and the unspecified address, mean this host to connect(2) and to getaddrinfo(3)
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _callers() -> tuple[str, ...]:
    frames = ((frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in traceback.walk_stack(None))
    found = [frame for frame in frames if frame[0] != __file__ and not frame[0].startswith("<frozen importlib")]
    # Those of the standard library alone don't say who it was.
    others = [frame for frame in found[_FRAMES:] if _is_foreign(frame[0])] if not _names_somebody(found) else []
    return tuple(f"{path}:{line} in {name}" for path, line, name in (*found[:_FRAMES], *others[:2]))


def _names_somebody(frames: list[tuple[str, int, str]]) -> bool:
    return any(_is_foreign(path) for path, _, _ in frames[:_FRAMES])


def _is_foreign(path: str) -> bool:
    return "site-packages" in path or not path.startswith((_LIBRARY, "<frozen"))
