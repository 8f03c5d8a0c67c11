"""The health of what is installed: host, files, and running servers. Cheap: nothing is loaded, nothing is hashed."""

import http.client
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from manifests.canonical import Json
from manifests.errors import AdapterError, DiskError, HostError, IntegrityError
from manifests.progress import format_size
from runtime.host import THIS_HOST, Gpu, available_memory, find_gpus, usable_cores
from runtime.layout import Prefix, Release

LEAST_DISK: Final = 1 << 30
"""Bytes below which logs, caches and the next install are in danger."""
LEAST_MEMORY: Final = 0.05
"""Share of the memory below which the kernel is about to end a process."""
_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row. ``verdict`` is ok, warning or failed; ``exit_code`` is what a failed one ends with."""

    name: str
    verdict: str
    found: str
    remedy: str = ""
    exit_code: int = 0
    details: Mapping[str, Json] = field(default_factory=dict)


def check_health(prefix: Prefix) -> tuple[Check, ...]:
    """Return every check, failed ones included.

    Raises:
        UsageError: Nothing is installed there.
        IntegrityError: What was live is in repair, or its manifest was changed.
    """
    release = prefix.require_live()
    checks = [_cpu(), _memory(), _disk(prefix)]
    checks += [_gpu(index, gpu) for index, gpu in enumerate(find_gpus())]
    checks += [_files(release), *_servers(prefix)]
    return tuple(checks)


def _cpu() -> Check:
    cores, load = usable_cores(), os.getloadavg()
    busy = load[0] / cores
    return Check(
        name="cpu",
        verdict="warning" if busy > 2 else "ok",
        found=f"{cores} cores usable, load {load[0]:.1f}",
        remedy=f"{busy:.1f} processes want each core; answers are slow" if busy > 2 else "",
        details={"cores": cores, "load": [f"{value:.2f}" for value in load]},
    )


def _memory() -> Check:
    left, total = available_memory(), int(THIS_HOST.memory().value)
    if left is None:
        return Check(name="memory", verdict="warning", found="this system doesn't say")
    short = left < total * LEAST_MEMORY
    return Check(
        name="memory",
        verdict="failed" if short else "ok",
        found=f"{format_size(left)} of {format_size(total)} left",
        remedy="launch fewer models, or --on-demand --max-loaded 1" if short else "",
        exit_code=HostError.exit_code,
        details={"available": left, "total": total},
    )


def _disk(prefix: Prefix) -> Check:
    usage = shutil.disk_usage(prefix.path)
    short = usage.free < LEAST_DISK
    return Check(
        name="disk",
        verdict="failed" if short else "ok",
        found=f"{format_size(usage.free)} of {format_size(usage.total)} free",
        remedy=f"runtime gc --prefix {prefix.path}" if short else "",
        exit_code=DiskError.exit_code,
        details={"free": usage.free, "total": usage.total},
    )


def _gpu(index: int, gpu: Gpu) -> Check:
    load = "" if gpu.load is None else f", busy {gpu.load} %"
    heat = "" if gpu.temperature is None else f", {gpu.temperature} C"
    share = gpu.memory_free / gpu.memory_total if gpu.memory_total else 0.0
    return Check(
        name=f"gpu {index}",
        verdict="warning" if share < LEAST_MEMORY else "ok",
        found=f"{gpu.name}: {format_size(gpu.memory_free)} of {format_size(gpu.memory_total)} free{load}{heat}",
        remedy="" if share >= LEAST_MEMORY else "its memory is full: nvidia-smi lists who uses it",
        details={"memory_free": gpu.memory_free, "memory_total": gpu.memory_total, "load": gpu.load},
    )


def _files(release: Release) -> Check:
    """Compare the model files with the signed manifest by presence and size; their bytes are verify's business."""
    entries = [entry for entry in release.manifest().files if entry.path.startswith("models/")]
    problems = []
    for entry in entries:
        try:
            size = (release.path / entry.path).lstat().st_size
        except OSError as error:
            problems.append(f"{entry.path}: {error.strerror}")
        else:
            problems += [f"{entry.path}: {size} bytes, expected {entry.size}"] if size != entry.size else []
    total = sum(entry.size for entry in entries)
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Check(
        name="model files",
        verdict="failed" if problems else "ok",
        found=f"{problems[0]}{more}" if problems else f"{len(entries)} there, {format_size(total)}, of {release.name}",
        remedy="runtime repair --list names all of them" if problems else "",
        exit_code=IntegrityError.exit_code,
        details={"problems": list(problems), "release": release.name},
    )


def _servers(prefix: Prefix) -> Iterator[Check]:
    found = sorted((prefix.var / "run").glob("server-*.json"))
    if not found:
        text = "none runs from this prefix"
        yield Check(name="server", verdict="warning", found=text, remedy=f"runtime launch --prefix {prefix.path}")
    for path in found:
        yield from _server(path)


def _server(path: Path) -> Iterator[Check]:
    name = path.stem.replace("-", " ", 1)
    try:
        document = json.loads(path.read_bytes())
        pid, url = int(document["pid"]), str(document["url"])
    except (OSError, ValueError, KeyError, TypeError):
        yield _failed(name, f"{path} can't be read", "remove it and launch again")
        return
    if not _runs(pid):
        yield _failed(name, f"process {pid} has ended without a farewell", "its log says why: var/logs/server.log")
        return
    try:
        status = _ask(url)
    except (OSError, http.client.HTTPException) as error:
        yield _failed(name, f"{url} doesn't answer: {error}", f"process {pid} hangs or only just starts")
        return
    if status != http.HTTPStatus.OK:
        yield _failed(name, f"{url} isn't ready: status {status}", "models are loading, or see var/logs/server.log")
        return
    yield Check(name=name, verdict="ok", found=f"{url} is ready, process {pid}", details={"pid": pid, "url": url})
    for model, facts in sorted(_mapping(document.get("models")).items()):
        yield _model(name, model, _mapping(facts))


def _model(server: str, name: str, facts: Mapping[str, Json]) -> Check:
    notes = facts.get("notes")
    reasons = "; ".join(str(note) for note in notes) if isinstance(notes, list) else ""
    found = f"{facts.get('probes', 'not probed')}; {reasons}"
    return Check(name=f"{server} {name}", verdict="ok", found=found, details=facts)


def _mapping(value: object) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _failed(name: str, found: str, remedy: str) -> Check:
    return Check(name=name, verdict="failed", found=found, remedy=remedy, exit_code=AdapterError.exit_code)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _ask(url: str) -> int:
    """Return the status of ``/ready``; no proxy is asked, whatever the environment says."""
    parts = urlsplit(url)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname or "")  # noqa: S104 - replaced
    connection = http.client.HTTPConnection(host, parts.port, timeout=_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status
    finally:
        connection.close()
