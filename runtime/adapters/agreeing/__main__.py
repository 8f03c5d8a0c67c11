"""``python -m runtime.adapters.agreeing --release DIR --model NAME``: how far 8-bit vectors are from the exact ones.

Prints ``{"model": ..., "agreement": {...}}`` for each model, measured on the texts of its probes, and last
``{"network": [...]}`` with the attempts that the guard refused. The exit status is 9 where one can't be measured, with
the reason on stderr.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from manifests.errors import AdapterError
from runtime.seal import attempts, cache_of, seal_process


def main() -> int:
    """Seal the process, then measure."""
    parser = argparse.ArgumentParser(prog="runtime.adapters.agreeing")
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    told = parser.parse_args()
    seal_process(cache=cache_of(os.environ))
    try:
        from runtime.adapters.agreement import measure_agreement  # noqa: PLC0415 # only now may libraries be imported
        from runtime.server.models import choose_models, load_models, load_probes  # noqa: PLC0415 # as above

        probes = load_probes(told.release)
        for config in choose_models(load_models(told.release), told.model):
            texts = [text for probe in probes if probe.model == config.name for text in probe.inputs]
            found = measure_agreement(config, texts)
            print(json.dumps({"model": config.name, "agreement": found.to_json()}), flush=True)
        print(json.dumps({"network": [attempt.to_json() for attempt in attempts()]}), flush=True)
    except Exception as error:  # noqa: BLE001 # whoever asked gets one line to report
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return AdapterError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
