"""Judging a model's answers against the recorded ones."""

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from manifests.canonical import Json
from manifests.manifest import Manifest, ModelEntry, Probe, manifest_digest
from runtime.hostfacts import Host
from runtime.layout import Prefix, Release
from runtime.probe import EMBEDDING_TOLERANCE, ask_models, decode_vector, explain_drift, judge_answer
from tests.factories import make_manifest


def vector(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def judge(answer: Mapping[str, object], expect: Json = None) -> list[str]:
    return list(judge_answer(answer, Probe(model="m", kind="embedding", inputs=("x",), expect=expect)))


@pytest.mark.parametrize(
    ("answer", "expect", "problems"),
    [
        ({}, None, ["an empty answer"]),
        ({"texts": []}, None, ["an empty answer"]),
        ({"texts": ["Paris."]}, None, []),
        ({"texts": ["  "]}, None, ["an empty text"]),
        ({"texts": ["Paris."]}, {"texts": ["Paris."]}, []),
        ({"texts": ["Rome."]}, {"texts": ["Paris."]}, ["answered 'Rome.', recorded 'Paris.'"]),
        ({"vectors": [vector(0.6, 0.8)]}, None, []),
        ({"vectors": [vector(0.6, 0.8)]}, {"vectors": [vector(0.6, 0.8)]}, []),
        ({"vectors": [vector(0.6, 0.8)]}, {"vectors": [vector(0.6, 0.8 + EMBEDDING_TOLERANCE * 0.9)]}, []),
        (
            {"vectors": [vector(0.6, 0.8)]},
            {"vectors": [vector(0.6, 0.75)]},
            ["a vector that differs by 0.05 from the recorded one, allowed 1e-03"],
        ),
        ({"vectors": [vector(1)]}, {"vectors": [vector(0.6, 0.8)]}, ["a vector of 1 numbers, recorded 2"]),
        ({"vectors": [vector(0, 0)]}, None, ["a vector that is empty, zero or not finite"]),
        ({"vectors": [vector(float("nan"), 1)]}, None, ["a vector that is empty, zero or not finite"]),
        ({"vectors": [vector(float("inf"), 1)]}, None, ["a vector that is empty, zero or not finite"]),
        ({"vectors": [""]}, None, ["a vector that is empty, zero or not finite"]),
    ],
)
def test_judge_answer(answer: Mapping[str, object], expect: Json, problems: list[str]) -> None:
    assert judge(answer, expect) == problems


def test_too_few_answers_are_a_problem() -> None:
    recorded = {"vectors": [vector(0.6, 0.8), vector(0.8, 0.6)]}
    assert judge({"vectors": [vector(0.6, 0.8)]}, recorded) == ["1 vectors, recorded 2"]
    assert judge({"texts": ["a", "b"]}, {"texts": ["a"]}) == ["2 texts, recorded 1"]
    assert judge({"texts": ["a"]}, recorded) == ["1 texts, recorded 0", "0 vectors, recorded 2"]


def test_decode_vector() -> None:
    assert decode_vector(vector(0.5, -2.0)) == (0.5, -2.0)


@pytest.mark.parametrize(
    ("worst", "dtype", "words"),
    [
        (1e-6, "float32", "rounding"),
        (5e-4, "float32", "another CPU kind or library"),
        (0.02, "float32", "another dtype than the recorded one (float32 here)"),
        (0.3, "bfloat16", "another dtype than the recorded one (bfloat16 here)"),
        (0.3, "float32", "too much for rounding: other weights"),
    ],
)
def test_drift_is_explained(worst: float, dtype: str, words: str) -> None:
    assert explain_drift(worst, dtype).startswith(words)


MODEL = ModelEntry(name="m", adapter="bge-m3", path="models/m", format="safetensors", origin="dir")


def answering(folder: Path, answer: Mapping[str, object], probe: Probe) -> tuple[Prefix, Release, Manifest]:
    """Return a release whose interpreter is a script that gives one answer and one refused attempt."""
    manifest = make_manifest({"models/m/config.json": b"{}"}, models=(MODEL,), probes=(probe,))
    data = manifest.encode()
    release = Release(path=folder / "releases" / f"1.0.0-{manifest_digest(data)[:12]}")
    release.python.parent.mkdir(parents=True)
    (release.path / "manifest.json").write_bytes(data)
    lines = (
        {"model": "m", "answers": [answer], "seconds": "1.5", "device": "cpu", "dtype": "float32"},
        {"attempts": ["x"]},
    )
    (folder / "answers").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    release.python.write_text(f"#!/bin/sh\ncat {folder}/answers\n")
    release.python.chmod(0o755)
    (folder / "var").mkdir()
    return Prefix(path=folder), release, manifest


def snmp(folder: Path, refused: int) -> Host:
    """Return a host whose kernel has refused so many packets."""
    (folder / "proc/net").mkdir(parents=True, exist_ok=True)
    (folder / "proc/net/snmp").write_text(f"Ip: Forwarding OutNoRoutes\nIp: 1 {refused}\nTcp: a\nTcp: 1\n")
    (folder / "proc/net/snmp6").write_text("Ip6OutNoRoutes                  \t2\n")
    return Host(root=folder)


def test_a_wrong_answer_is_found_measured_and_explained(tmp_path: Path) -> None:
    probe = Probe(model="m", kind="embedding", inputs=("x",), expect={"vectors": [vector(1.0, 0.0)]})
    prefix, release, manifest = answering(tmp_path, {"vectors": [vector(0.98, 0.02)]}, probe)
    host = snmp(tmp_path / "root", 5)
    assert host.unroutable() == 7
    asked = ask_models(prefix, release, manifest, host=host)
    (model,) = asked.models
    assert (model.probes, model.compared, model.device, model.dtype, model.seconds) == (1, 1, "cpu", "float32", "1.5")
    assert model.worst == pytest.approx(0.02, abs=1e-6)
    assert model.explanation == "another dtype than the recorded one (float32 here), 8-bit layers, or a GPU"
    assert asked.problems == [
        "model m: a vector that differs by 0.02 from the recorded one, allowed 1e-03",
        "tried to reach the network: x",
    ]
    assert asked.unroutable == 0
    assert Host(root=tmp_path / "none").unroutable() is None
