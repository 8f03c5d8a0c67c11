"""The go-live report: everything that ``runtime verify`` found, as one document, and filed as JSON and as a page."""

import itertools
import json
import platform
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from manifests import __version__
from manifests.digests import sha256_hex
from manifests.files import write_atomic
from manifests.manifest import Manifest
from runtime.accelerators import find_gpus
from runtime.audit import overrides_of, who
from runtime.hostfacts import Host
from runtime.layout import Prefix, make_folder
from runtime.page import render_page
from runtime.probe import EMBEDDING_TOLERANCE, Asked, AskedModel
from runtime.verify import ReleaseReport, Section

REPORT_TYPE: Final = "urn:sealift:go-live:1"
_STAMP: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the report says of the verification itself: depth, begin and end (UTC), and how trust was judged."""

    depth: str
    started: datetime
    ended: datetime
    signatures: int = 1
    time_note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledReport:
    """The two files of a report."""

    data: Path
    page: Path


def report_document(
    prefix: Prefix, found: ReleaseReport, circumstances: Circumstances, host: Host | None = None
) -> dict[str, object]:
    """Return the report: only what JSON can hold, times UTC, sizes in bytes, durations in seconds."""
    host = host or Host()
    receipt, manifest = found.release.receipt(), found.release.manifest()
    return {
        "type": REPORT_TYPE,
        "verdict": "not good" if found.exit_code else "good",
        "exit_code": found.exit_code,
        "bundle": _bundle(manifest, found),
        "release": {
            "name": found.release.name,
            "prefix": str(prefix.path),
            "installed": receipt.installed,
            "python": receipt.python,
        },
        "trust": {
            "source": found.trust_source,
            "signers": list(receipt.signers),
            "signatures_needed": circumstances.signatures,
            "time_note": circumstances.time_note,
        },
        "sections": [_section(section) for section in found.sections],
        "preflight": [asdict(check) for check in found.checks],
        "models": _models(found.asked),
        "tolerance": f"{EMBEDDING_TOLERANCE:.0e}",
        "network": _network(found.asked, host),
        "overrides": list(overrides_of(prefix)),
        "host": host_document(host),
        "verification": {
            "depth": circumstances.depth,
            "started": f"{circumstances.started:{_STAMP}}",
            "ended": f"{circumstances.ended:{_STAMP}}",
            "seconds": round((circumstances.ended - circumstances.started).total_seconds(), 1),
            "by": who(),
            "sealift": __version__,
            "python": platform.python_version(),
        },
    }


def file_report(document: dict[str, object], folder: Path, name: str) -> FiledReport:
    """Write ``NAME.json`` and ``NAME.html`` into ``folder``; the page names the digest of the data.

    Where there is a report of that name already, the new one is ``NAME-2``, and so on.

    Raises:
        DiskError: They can't be written.
    """
    make_folder(folder)
    data = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    free = next(name for name in names if not (folder / f"{name}.json").exists())
    filed = FiledReport(data=folder / f"{free}.json", page=folder / f"{free}.html")
    write_atomic(filed.data, data)
    write_atomic(filed.page, render_page(document, data_name=filed.data.name, data_digest=sha256_hex(data)).encode())
    return filed


def report_name(found: ReleaseReport, started: datetime) -> str:
    """Return the stem of a report's files: which release, and when; no report replaces an earlier one."""
    return f"go-live-{found.release.name}-{started:%Y%m%dT%H%M%SZ}"


def host_document(host: Host) -> dict[str, object]:
    """Return what this host is: names and numbers, nothing that is secret."""
    cores, memory, gpus = host.cores(), host.memory(), find_gpus(host)
    cpu, flags = host.cpu()
    wanted = ("amx_bf16", "amx_int8", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "i8mm", "sve")
    return {
        "name": platform.node(),
        "system": host.distribution(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": cpu,
        "cpu_features": [flag for flag in wanted if flag in flags],
        "cores": cores.value,
        "cores_of_host": cores.whole,
        "memory": int(memory.value),
        "memory_of_host": int(memory.whole),
        "gpus": list(gpus.names),
        "gpu_driver": gpus.driver,
    }


def _bundle(manifest: Manifest, found: ReleaseReport) -> dict[str, object]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "target": manifest.target.label,
        "created": manifest.created,
        "sequence": manifest.sequence,
        "digest": found.digest,
        "files": len(manifest.files),
        "size": manifest.payload_size,
        "wheels": len(manifest.of_kind("wheel")),
        "models": [model.name for model in manifest.models],
    }


def _section(section: Section) -> dict[str, object]:
    return {
        "name": section.name,
        "checked": section.checked,
        "problems": list(section.problems),
        "exit_code": section.exit_code if section.problems else 0,
        "seconds": round(section.seconds, 2),
    }


def _models(asked: Asked | None) -> list[dict[str, object]]:
    return [_model(model) for model in asked.models] if asked is not None else []


def _model(model: AskedModel) -> dict[str, object]:
    return {
        "name": model.name,
        "seconds": model.seconds,
        "device": model.device,
        "dtype": model.dtype,
        "probes": model.probes,
        "compared": model.compared,
        "worst_difference": None if model.worst is None else f"{model.worst:.2g}",
        "explanation": model.explanation,
        "problems": list(model.problems),
    }


def _network(asked: Asked | None, host: Host) -> dict[str, object]:
    return {
        "default_routes": list(host.default_routes()),
        "name_servers": list(host.resolvers()),
        "interfaces": list(host.interfaces()),
        "models_asked": asked is not None,
        "attempts": list(asked.attempts) if asked is not None else [],
        "unroutable_packets": asked.unroutable if asked is not None else None,
    }
