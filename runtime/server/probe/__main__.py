"""``python -m runtime.server.probe --release DIR``: ask every model, print one JSON line for each.

``{"model": ..., "seconds": ..., "answers": [...]}`` or ``{"model": ..., "error": ...}``, then a line with the network
attempts that the guard refused, and last ``{"network": [...], "versions": {...}}``: the same attempts with their
callers, and the versions that gave the answers. The exit status is 0 whatever the answers are; 9 where nobody could be
asked, with the reason on stderr.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

from manifests.errors import AdapterError
from runtime.seal import attempts, cache_of, seal_process


def main() -> int:
    """Seal the process, then ask."""
    parser = argparse.ArgumentParser(prog="runtime.server.probe")
    parser.add_argument("--release", type=Path, required=True)
    release: Path = parser.parse_args().release
    seal_process(cache=cache_of(os.environ))
    try:
        from runtime.server.asking import ask_all  # noqa: PLC0415 # only now may libraries be imported

        for line in ask_all(release):
            print(json.dumps(line), flush=True)
        network = [attempt.to_json() for attempt in attempts()]
        print(json.dumps({"network": network, "versions": versions()}), flush=True)
    except Exception as error:  # noqa: BLE001 # whoever asked gets one line to report
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return AdapterError.exit_code
    return 0


def versions() -> dict[str, str]:
    """Return what answers depend on besides the model: libraries, and the kind of CPU that PyTorch computes for."""
    import torch  # noqa: PLC0415 # the models have imported it already

    found = {"cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    for name in ("sealift", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
