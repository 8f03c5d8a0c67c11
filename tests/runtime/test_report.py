"""The go-live report: one document, filed as JSON and as a page that loads nothing and shows everything."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from manifests.digests import sha256_hex
from runtime.layout import Prefix
from runtime.page import render_page
from runtime.page_text import LABELS, SECTION_NAMES
from runtime.preflight import Check
from runtime.probe import Asked, AskedModel
from runtime.report import Circumstances, report_document, report_name
from runtime.verify import ReleaseReport, Section
from tests.factories_closed import ClosedBundle, Host, make_host

STARTED = datetime(2026, 6, 1, 12, tzinfo=UTC)
EVIL = "<script>alert('1')</script> & 서울"


class Page(HTMLParser):
    """A page as a reader sees it: its text, its tags, everything that would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]
        self.loaded += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All words, white space as one blank."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory, first: ClosedBundle) -> tuple[Prefix, Path]:
    """A prefix where the first bundle was installed and verified with a report, and the report's folder."""
    folder = tmp_path_factory.mktemp("verified")
    host = make_host(folder / "home")
    words = ("--prefix", folder / "prefix", "--trust", first.trust)
    assert host.runtime(first.pyz, "install", first.tar, *words, "--no-smoke").returncode == 0
    done = host.runtime(first.pyz, "verify", *words, "--report", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return Prefix(path=folder / "prefix"), folder / "out"


def test_the_files_of_a_good_release(verified: tuple[Prefix, Path], first: ClosedBundle) -> None:
    prefix, folder = verified
    data, page = sorted(folder.iterdir(), reverse=True)
    name = prefix.require_live().name
    assert re.fullmatch(rf"go-live-{re.escape(name)}-\d{{8}}T\d{{6}}Z\.json", data.name)
    assert page.name == data.name.replace(".json", ".html")
    document = json.loads(data.read_text())
    assert (document["verdict"], document["exit_code"], document["type"]) == ("good", 0, "urn:sealift:go-live:1")
    assert [section["name"] for section in document["sections"]] == [
        *("signature", "files", "venv", "host", "preflight", "network")
    ]
    assert document["bundle"]["digest"] == prefix.require_live().receipt().digest
    assert document["bundle"]["files"] == len(first.manifest.files)
    assert document["trust"]["source"] == str(first.trust)
    assert {"gpu", "clock", "umask", "network"} <= {row["name"] for row in document["preflight"]}
    assert document["network"]["default_routes"] == []
    text = Page(page.read_text()).text
    assert sha256_hex(data.read_bytes()) in text
    assert document["bundle"]["digest"] in text
    assert "GOOD · 적합 exit code 0, 0 findings" in text


def test_no_report_replaces_an_earlier_one(verified: tuple[Prefix, Path], host: Host, first: ClosedBundle) -> None:
    prefix, folder = verified
    before = set(folder.iterdir())
    words = ("verify", "--prefix", prefix.path, "--quick", "--report", folder, "--json")
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 0, done.stderr
    made = [Path(path) for path in json.loads(done.stdout)["report"]]
    assert not set(made) & before
    text = Page(made[1].read_text()).text
    assert "What this report does not say" in text
    for key in ("limit_trust", "limit_quick"):
        assert Page(LABELS[key]).text in text
    for key in ("limit_models", "limit_unrecorded"):
        assert Page(LABELS[key]).text not in text


def test_the_gravest_finding_is_the_report_s(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    words = ("--prefix", prefix, "--trust", first.trust)
    assert host.runtime(first.pyz, "install", first.tar, *words, "--no-smoke").returncode == 0
    (prefix / "current/docs/more").write_bytes(b"")
    done = host.runtime(first.pyz, "verify", *words, "--service-user", "no-such-user", "--report", tmp_path / "out")
    assert done.returncode == 5, "files go before the host"
    document = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    problems = {section["name"]: section["problems"] for section in document["sections"] if section["problems"]}
    assert problems == {
        "files": ["docs/more: not in the manifest"],
        "preflight": ["service user: found no such user, needed no-such-user may read the prefix"],
    }
    text = Page(next((tmp_path / "out").glob("*.html")).read_text()).text
    assert "NOT GOOD · 부적합 exit code 5, 2 findings" in text
    assert "docs/more: not in the manifest" in text
    (prefix / "current/docs/more").unlink()
    done = host.runtime(first.pyz, "verify", *words, "--service-user", "no-such-user", "--report", tmp_path / "out")
    assert done.returncode == 6


def test_a_report_is_about_an_installed_release(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    words = ("verify", first.tar, "--trust", first.trust, "--report", tmp_path / "out")
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --report is about an installed release\nhint: runtime verify --prefix")


def found(prefix: Prefix, **changes: Any) -> ReleaseReport:  # noqa: ANN401 # each test gives the field's own type
    section = Section(name="signature", checked="who", problems=(), exit_code=4, seconds=0.5)
    release = prefix.require_live()
    report = ReleaseReport(release=release, digest="d" * 64, trust_source="kit", sections=(section,))
    return replace(report, **changes)


def document_of(prefix: Prefix, **changes: Any) -> Mapping[str, object]:  # noqa: ANN401 # as above
    ended = STARTED + timedelta(seconds=61.25)
    circumstances = Circumstances(depth="normal", started=STARTED, ended=ended, time_note="clock note")
    return report_document(prefix, found(prefix, **changes), circumstances)


def test_what_models_answered(verified: tuple[Prefix, Path]) -> None:
    models = (
        AskedModel(name="bge-m3", seconds="12.4", device="cpu", dtype="float32", probes=3, compared=3, worst=2.1e-6),
        AskedModel(name="hcx", seconds="9.0", device="cpu", dtype="bfloat16", probes=2, compared=1, problems=("odd",)),
        AskedModel(name="gone", problems=("model gone: gave no answer",)),
    )
    asked = Asked(models=models, attempts=("socket.connect 10.0.0.1:443",), unroutable=2)
    assert asked.problems == [
        "odd",
        "model gone: gave no answer",
        "tried to reach the network: socket.connect 10.0.0.1:443",
    ]
    document = document_of(verified[0], asked=asked)
    text = Page(render_page(document, data_name="x.json", data_digest="0" * 64)).text
    for words in (
        "3 asked, 3 compared with recorded answers",
        "2.1e-06 at most, allowed 1e-03; rounding: another number of threads, or another CPU kind",
        "2 asked, 1 compared with recorded answers",
        "bfloat16 on cpu",
        "not loaded",
        "socket.connect 10.0.0.1:443",
        "2 packets without a route, all processes",
        "clock note",
        "61.2 s",
        Page(LABELS["limit_unrecorded"]).text,
    ):
        assert words in text, words


def test_the_page_loads_nothing_and_runs_nothing(verified: tuple[Prefix, Path]) -> None:
    section = Section(name="files", checked=EVIL, problems=(EVIL,), exit_code=5, seconds=1.0)
    check = Check(name=EVIL, found=EVIL, needed=EVIL, verdict="warning", remedy=EVIL)
    model = AskedModel(name=EVIL, device=EVIL, dtype=EVIL, problems=(EVIL,))
    changes = {"sections": (section,), "checks": (check,), "asked": Asked(models=(model,), attempts=(EVIL,))}
    document = document_of(verified[0], **changes, trust_source=EVIL)
    text = render_page(document, data_name=EVIL, data_digest=EVIL)
    page = Page(text)
    assert page.loaded == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert page.text.count(EVIL) >= 10, "shown as it is"


def test_both_languages_have_every_label() -> None:
    for label in LABELS.values():
        assert re.fullmatch(r"[^가-힣]+ <small>[^<]*[가-힣][^<]*</small>", label), label
    assert all(re.search(r"[가-힣]", name) for name in SECTION_NAMES.values())


def test_the_name_says_which_and_when(verified: tuple[Prefix, Path]) -> None:
    name = verified[0].require_live().name
    assert report_name(found(verified[0]), STARTED) == f"go-live-{name}-20260601T120000Z"
