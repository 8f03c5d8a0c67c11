"""Judging a model's answers against the recorded ones."""

import base64
import struct
from collections.abc import Mapping

import pytest

from manifests.canonical import Json
from manifests.manifest import Probe
from runtime.probe import EMBEDDING_TOLERANCE, decode_vector, judge_answer


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
