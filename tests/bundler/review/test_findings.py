"""Findings: secrets by their form, treemap, what pip-audit answers, and what nobody declared."""

from io import BytesIO
from typing import Final

import pytest

from bundler.review.audit import Audit, parse_answer
from bundler.review.findings import (
    Finding,
    judge,
    license_findings,
    model_findings,
    native_findings,
    undeclared_findings,
)
from bundler.review.secretscan import find_secrets
from bundler.review.treemap import Cell, squarify
from manifests.errors import SourceError
from manifests.manifest import AppEntry, ModelEntry
from manifests.policy import parse_policy
from tests.factories import make_manifest
from tests.factories_review import CREATED, SECRET

LETTERS: Final = "aB3" * 20
MODEL: Final = ModelEntry(name="tiny", adapter="hcx", path="models/tiny", format="safetensors", origin="")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN " + "PRIVATE KEY-----", "private key"),
        ("-----BEGIN EC " + "PRIVATE KEY-----", "private key"),
        ("key = AKIA" + "ABCDEFGH12345678", "AWS access key"),
        ("ghp_" + LETTERS[:36], "GitHub token"),
        ("glpat-" + LETTERS[:20], "GitLab token"),
        ("HF_TOKEN=hf_" + LETTERS[:34], "Hugging Face token"),
        ("sk-proj-" + LETTERS[:48], "API key of a language model's provider"),
        ("AIza" + LETTERS[:35], "Google API key"),
        ("xoxb-" + LETTERS[:24], "Slack token"),
        ("pypi-AgE" + LETTERS[:60], "PyPI token"),
    ],
)
def test_every_kind_of_secret_is_found_by_line_and_never_repeated(text: str, kind: str) -> None:
    assert find_secrets(BytesIO(f"first\n{text}\nlast\n".encode())) == (f"{kind}, line 2",)


@pytest.mark.parametrize(
    "text",
    ["-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----", "task-management-system", "AKIA too short", "hf_hub"],
)
def test_what_is_no_secret(text: str) -> None:
    assert find_secrets(BytesIO(text.encode())) == ()


def test_a_secret_across_two_blocks_is_found_once() -> None:
    start = 1024 * 1024 - 30
    data = b"x" * (start - 1) + b"\n" + SECRET + b"\n" * (1024 * 1024)
    assert find_secrets(BytesIO(data)) == ("private key, line 3",)


def test_many_secrets_are_cut() -> None:
    assert len(find_secrets(BytesIO(SECRET * 100))) == 20


def test_cells_fill_the_area_in_proportion_and_stay_near_squares() -> None:
    sizes = [600, 0, 300, 100, 50, 25, 25]
    cells = list(squarify(sizes, 110, 100))
    assert [cell.index for cell in cells] == [0, 2, 3, 4, 5, 6]
    for cell in cells:
        assert cell.width * cell.height == pytest.approx(sizes[cell.index] * 10)
        assert max(cell.width / cell.height, cell.height / cell.width) < 4
        assert (cell.x >= 0, cell.y >= 0) == (True, True)
        assert (cell.x + cell.width, cell.y + cell.height) <= (110.001, 100.001)
    assert not any(_overlap(a, b) for a in cells for b in cells if a is not b)


def _overlap(a: Cell, b: Cell) -> bool:
    edge = 1e-6
    return (
        a.x < b.x + b.width - edge
        and b.x < a.x + a.width - edge
        and a.y < b.y + b.height - edge
        and b.y < a.y + a.height - edge
    )


def test_nothing_to_draw() -> None:
    assert list(squarify([], 10, 10)) == []
    assert list(squarify([0, 0], 10, 10)) == []
    (cell,) = squarify([5], 10, 20)
    assert cell == Cell(index=0, x=0, y=0, width=10, height=20)


def test_native_libraries_are_one_finding_with_the_first_eight() -> None:
    (finding,) = native_findings("wheels/x.whl", tuple(f"{number}.so" for number in range(10)))
    names = ", ".join(f"{number}.so" for number in range(8))
    assert finding == Finding(kind="native-code", what="wheels/x.whl", detail=f"10 libraries: {names}, and 2 more")
    assert list(native_findings("wheels/x.whl", ())) == []


def test_licences_are_judged_only_by_a_list() -> None:
    strict, free = parse_policy({"licenses": ["MIT"]}), parse_policy({})
    assert list(license_findings("wheels/x.whl", "GPL-3.0-only", free)) == []
    (finding,) = license_findings("wheels/x.whl", "GPL-3.0-only", strict)
    assert finding == Finding(kind="license", what="wheels/x.whl", detail="GPL-3.0-only is not in the allow-list")
    assert [item.kind for item in license_findings("wheels/x.whl", "", strict)] == ["unknown-license"]


def test_what_a_model_holds() -> None:
    facts = {
        "auto-map": ["config.json: modeling.Tiny"],
        "code": ["modeling.py"],
        "pickles": ["model.safetensors"],
        "remote-repos": ["somebody/else"],
    }
    assert sorted((item.kind, item.what) for item in model_findings("models/tiny", facts)) == [
        ("auto-map", "models/tiny"),
        ("auto-map", "models/tiny/config.json"),
        ("pickle", "models/tiny/model.safetensors"),
        ("remote-code", "models/tiny/modeling.py"),
    ]
    assert list(model_findings("models/tiny", {"pickles": "not a list"})) == []


def test_files_that_nobody_declared() -> None:
    files = {"models/tiny/config.json": b"{}", "models/other/x": b"x", "app/web/a/b.py": b"", "docs/README": b""}
    app = AppEntry(name="web", path="app/web", origin="")
    manifest = make_manifest(files, models=(MODEL,), app=(app,))
    listed = frozenset({"models/tiny/config.json", "models/other/x", "app/web/"})
    assert [(item.what, item.detail) for item in undeclared_findings(manifest, listed)] == [
        ("models/other/x", "no model of the manifest has it"),
        ("docs/README", "the SBOM doesn't list it"),
    ]
    without = [item.what for item in undeclared_findings(manifest, None)]
    assert without == ["docs/sbom.cdx.json", "models/other/x"]


def test_refused_findings_come_first() -> None:
    findings = [
        Finding(kind="native-code", what="a"),
        Finding(kind="pickle", what="b"),
        Finding(kind="pickle", what="a"),
    ]
    judged = judge([*findings, findings[0]], parse_policy({}), CREATED)
    assert [(item.finding.kind, item.finding.what, item.verdict) for item in judged] == [
        ("pickle", "a", "refused"),
        ("pickle", "b", "refused"),
        ("native-code", "a", "allowed"),
    ]


def test_what_pip_audit_answers() -> None:
    text = (
        '{"dependencies": [{"name": "good", "version": "1", "vulns": []}, {"name": "odd", "skip_reason": "local"},'
        ' {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "description": "It\\n burns."}]}]}'
    )
    burns = Finding(kind="vulnerabilities", what="PYSEC-1 bad==2", detail="It burns.")
    assert parse_answer(text) == Audit(findings=(burns,), unanswered=("odd: local",))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"dependencies": [{"name": "x", "version": "1", "vulns": [{}]}]}'])
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(SourceError, match=r"^pip-audit gave no answer: can't resolve host$"):
        parse_answer(text, "Traceback\n  ...\ncan't resolve host\n")
