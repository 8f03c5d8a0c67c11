"""Asking the installed models: each is loaded by itself in the sealed environment, its answers are judged here."""

import base64
import json
import math
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from manifests.errors import AdapterError
from manifests.manifest import Manifest, Probe
from runtime.hostfacts import Host
from runtime.launch import LaunchCommand, server_command
from runtime.layout import Prefix, Release

PROBE_MODULE: Final = "runtime.server.probe"
EMBEDDING_TOLERANCE: Final = 1e-3
"""Largest difference of one component that another CPU kind may make, vectors being of length 1."""

SPARSE_TOLERANCE: Final = 1e-2
"""Largest difference of a token's lexical weight, which is of the order of 0.1 and isn't normalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedModel:
    """What one model did when it was asked.

    ``seconds`` is loading and answering together, as text; ``probes`` how many were asked, ``compared`` how many of
    those have a recorded answer. ``worst`` is the largest difference of one component of a vector, None where none was
    compared. ``device`` and ``dtype`` are empty where the model did not load.
    """

    name: str
    seconds: str = ""
    device: str = ""
    dtype: str = ""
    probes: int = 0
    compared: int = 0
    worst: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def explanation(self) -> str:
        """What the difference from the recorded answers usually comes from, empty where there is none."""
        return explain_drift(self.worst, self.dtype) if self.worst else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What all models did, and what of the network somebody tried to reach meanwhile, by the guard's own list.

    ``unroutable`` is how many packets the kernel refused meanwhile for want of a route, whoever sent them on this host;
    None where the kernel doesn't tell. ``lines`` is what the probing process told, for a rehearsal.
    """

    models: tuple[AskedModel, ...]
    attempts: tuple[str, ...] = ()
    unroutable: int | None = None
    lines: tuple[Mapping[str, object], ...] = ()

    @property
    def problems(self) -> list[str]:
        """Every finding, with its model."""
        found = [problem for model in self.models for problem in model.problems]
        return found + [f"tried to reach the network: {attempt}" for attempt in self.attempts]


def ask_probes(prefix: Prefix, release: Release, manifest: Manifest) -> tuple[str, list[str]]:
    """Load every model, ask its probes, compare with the recorded answers.

    Returns:
        What was checked, and every problem.

    Raises:
        AdapterError: The probing process itself does not run.
    """
    return describe_asked(ask_models(prefix, release, manifest), manifest)


def describe_asked(asked: Asked, manifest: Manifest) -> tuple[str, list[str]]:
    """Return what was checked, in words, and every problem."""
    unrecorded = sum(probe.expect is None for probe in manifest.probes)
    told = f", {unrecorded} of {len(manifest.probes)} probes have no recorded answer" if unrecorded else ""
    return f"{len(manifest.models)} models loaded and asked, no network{told}", asked.problems


def ask_models(
    prefix: Prefix,
    release: Release,
    manifest: Manifest,
    *,
    host: Host | None = None,
    command: LaunchCommand | None = None,
) -> Asked:
    """Load every model in the sealed environment, ask its probes, compare with the recorded answers.

    Args:
        prefix: Where the release is.
        release: Whose models are asked.
        manifest: The release's.
        host: Counts the packets that the kernel refuses.
        command: What asks them, in place of the release's own Python.

    Raises:
        AdapterError: The probing process itself does not run.
    """
    host = host or Host()
    command = command or server_command(prefix, release, PROBE_MODULE, ())
    before = host.unroutable()
    done = subprocess.run(
        command.arguments, env=command.environment, capture_output=True, text=True, check=False, cwd=prefix.var
    )
    after = host.unroutable()
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    answers = {line["model"]: line for line in lines if "model" in line}
    if done.returncode:
        at = next((model.name for model in manifest.models if model.name not in answers), "none")
        raise AdapterError(f"the models could not be asked, at model {at!r}: {_last_words(done)}")
    attempts: list[str] = next((line["attempts"] for line in lines if "attempts" in line), [])
    return Asked(
        models=tuple(_asked_model(model.name, answers, manifest) for model in manifest.models),
        attempts=tuple(attempts),
        unroutable=None if before is None or after is None else after - before,
        lines=tuple(lines),
    )


def explain_drift(worst: float, dtype: str) -> str:
    """Return what a difference of ``worst`` in one component of a vector of length 1 usually comes from."""
    if worst <= 1e-5:  # float32 sums in another order
        return "rounding: another number of threads, or another CPU kind"
    if worst <= EMBEDDING_TOLERANCE:
        return "another CPU kind or library, whose kernels round differently"
    if dtype in {"float16", "bfloat16"} or worst <= 0.05:  # 8 bits of mantissa, summed
        return f"another dtype than the recorded one ({dtype or 'unknown'} here), 8-bit layers, or a GPU"
    return "too much for rounding: other weights, another tokenizer or other settings"


def _asked_model(name: str, answers: Mapping[str, Mapping[str, object]], manifest: Manifest) -> AskedModel:
    answer = answers.get(name, {})
    probes = [probe for probe in manifest.probes if probe.model == name]
    given = answer.get("answers")
    pairs = list(zip(given if isinstance(given, list) else [], probes, strict=False))
    differences = [value for item, probe in pairs for value in _differences(item, probe)]
    return AskedModel(
        name=name,
        seconds=str(answer.get("seconds", "")),
        device=str(answer.get("device", "")),
        dtype=str(answer.get("dtype", "")),
        probes=len(given) if isinstance(given, list) else 0,
        compared=sum(probe.expect is not None for _, probe in pairs),
        worst=max(differences, default=None),
        problems=tuple(_judge_model(name, answers, manifest)),
    )


def _differences(answer: Mapping[str, object], probe: Probe) -> Iterator[float]:
    """Yield the largest difference of each vector that has a recorded one of the same length."""
    expect = probe.expect if isinstance(probe.expect, Mapping) else {}
    for vector, wanted in _pairs(_strings(answer.get("vectors")), _strings(expect.get("vectors"))):
        if wanted is None:
            continue
        one, other = decode_vector(vector), decode_vector(wanted)
        if len(one) == len(other) and one:
            yield max(abs(a - b) for a, b in zip(one, other, strict=True))


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """Return why the probing process ended: what it said last, or the signal that killed it."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"killed by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"
    return done.stderr.strip()[-2000:] or f"no message, status {done.returncode}"


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
    yield from _judge_sparse(_lexical(answer.get("sparse")), _lexical(expect.get("sparse")))


def _judge_sparse(got: list[Mapping[int, float]], wanted: list[Mapping[int, float]]) -> Iterator[str]:
    if wanted and len(got) != len(wanted):
        yield f"{len(got)} lexical answers, recorded {len(wanted)}"
    for ours, theirs in zip(got, wanted, strict=False):
        differences = {token: abs(ours.get(token, 0.0) - theirs.get(token, 0.0)) for token in {*ours, *theirs}}
        # A weight near 0 is left out by some CPUs, so only what is above the tolerance counts as a token.
        wrong = sorted(token for token, value in differences.items() if not value <= SPARSE_TOLERANCE)
        if wrong:
            worst = max(differences.values())
            tokens = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            yield f"lexical weights that differ by up to {worst:.2g}, allowed {SPARSE_TOLERANCE:.0e}: tokens {tokens}"


def _lexical(value: object) -> list[Mapping[int, float]]:
    """Return the weights of each input by token id, from lists of ``{"tokens", "weights"}``."""
    rows = [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []
    return [dict(zip(row["tokens"], decode_vector(row["weights"]), strict=False)) for row in rows]


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
