"""Asking the installed models: each is loaded by itself in the sealed environment, its answers are judged here."""

import base64
import json
import math
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from manifests.errors import AdapterError
from manifests.manifest import Manifest, Probe
from runtime.launch import server_command
from runtime.layout import Prefix, Release

EMBEDDING_TOLERANCE: Final = 1e-3
"""Largest difference of one component that another CPU kind may make, vectors being of length 1."""


def ask_probes(prefix: Prefix, release: Release, manifest: Manifest) -> tuple[str, list[str]]:
    """Load every model, ask its probes, compare with the recorded answers.

    Returns:
        What was checked, and every problem.

    Raises:
        AdapterError: The probing process itself does not run.
    """
    command = server_command(prefix, release, "runtime.server.probe", ())
    done = subprocess.run(
        command.arguments, env=command.environment, capture_output=True, text=True, check=False, cwd=prefix.var
    )
    if done.returncode:
        raise AdapterError(f"the models could not be asked:\n{done.stderr.strip()[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    answers = {line["model"]: line for line in lines if "model" in line}
    problems = [problem for model in manifest.models for problem in _judge_model(model.name, answers, manifest)]
    attempts: list[str] = next((line["attempts"] for line in lines if "attempts" in line), [])
    problems += [f"tried to reach the network: {attempt}" for attempt in attempts]
    unrecorded = sum(probe.expect is None for probe in manifest.probes)
    told = f", {unrecorded} of {len(manifest.probes)} probes have no recorded answer" if unrecorded else ""
    return f"{len(manifest.models)} models loaded and asked, no network{told}", problems


def _judge_model(name: str, answers: Mapping[str, Mapping[str, object]], manifest: Manifest) -> Iterator[str]:
    answer = answers.get(name)
    if answer is None:
        yield f"model {name}: gave no answer"
    elif "error" in answer:
        yield str(answer["error"])
    else:
        probes = [probe for probe in manifest.probes if probe.model == name]
        answers_given = answer["answers"]
        given = answers_given if isinstance(answers_given, list) else []
        if len(given) < max(1, len(probes)):
            yield f"model {name}: answered {len(given)} of {max(1, len(probes))} probes"
        for index, item in enumerate(given):
            probe = probes[index] if index < len(probes) else None
            yield from (f"model {name}: {problem}" for problem in judge_answer(item, probe))


def judge_answer(answer: Mapping[str, object], probe: Probe | None) -> Iterator[str]:
    """Yield what is wrong with one answer: empty, not finite, too few or too many, or other than recorded."""
    expect = probe.expect if probe is not None and isinstance(probe.expect, Mapping) else {}
    texts, vectors = _strings(answer.get("texts")), _strings(answer.get("vectors"))
    if not texts and not vectors:
        yield "an empty answer"
    for name, given, recorded in (("texts", texts, expect.get("texts")), ("vectors", vectors, expect.get("vectors"))):
        if expect and len(given) != len(_strings(recorded)):
            yield f"{len(given)} {name}, recorded {len(_strings(recorded))}"
    for text, wanted in _pairs(texts, _strings(expect.get("texts"))):
        if not text.strip():
            yield "an empty text"
        elif wanted is not None and text != wanted:
            yield f"answered {text!r}, recorded {wanted!r}"
    for vector, wanted in _pairs(vectors, _strings(expect.get("vectors"))):
        yield from _judge_vector(decode_vector(vector), decode_vector(wanted) if wanted is not None else None)


def _judge_vector(got: Sequence[float], wanted: Sequence[float] | None) -> Iterator[str]:
    if not got or not all(math.isfinite(value) for value in got) or not any(got):
        yield "a vector that is empty, zero or not finite"
    elif wanted is not None and len(got) != len(wanted):
        yield f"a vector of {len(got)} numbers, recorded {len(wanted)}"
    elif wanted is not None:
        worst = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
        if not worst <= EMBEDDING_TOLERANCE:  # a recorded NaN compares as neither
            yield f"a vector that differs by {worst:.2g} from the recorded one, allowed {EMBEDDING_TOLERANCE:.0e}"


def decode_vector(text: str) -> tuple[float, ...]:
    """Return the floats of base64 little-endian float32."""
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _pairs(got: list[str], wanted: list[str]) -> Iterator[tuple[str, str | None]]:
    for index, item in enumerate(got):
        yield item, wanted[index] if index < len(wanted) else None
