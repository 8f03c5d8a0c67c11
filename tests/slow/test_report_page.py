"""The report's page in a real browser: no request leaves it, it fits a desk and a telephone, and it prints."""

import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from bundler.rehearsal.sandbox import find_isolation
from bundler.review.report import ReportOptions, make_report
from bundler.review.reportpage import Language, render_page
from bundler.store import Store
from manifests.canonical import Json
from manifests.pieces import Silent
from tests.factories import Key
from tests.factories_closed import program
from tests.factories_review import ALLOW_ALL, Sources, defective_lock, make_bundle_of

pytestmark = pytest.mark.slow

NOW: Final = datetime(2026, 2, 1, tzinfo=UTC)
OPTIONS: Final = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
# Only the browser's own measure of the page tells whether it fits; the page itself has no script.
MEASURE: Final = (
    "<script>document.title = [document.documentElement.scrollWidth, document.documentElement.clientWidth,"
    " [...document.querySelectorAll('main [lang]')].filter(e => e.checkVisibility()).map(e => e.lang)"
    ".filter((l, i, all) => all.indexOf(l) === i).join('+')].join(' ')</script>"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Mapping[Language, str]:
    """The page of a bundle with every defect, each language first."""
    folder = tmp_path_factory.mktemp("report")
    sources = Sources(store=Store(folder / "cache"), folder=folder / "files")
    waiver: Json = {"class": "license", "what": "wheels/gpl-*", "who": "kim", "why": "known", "until": "2026-12-31"}
    policy: dict[str, Json] = {"licenses": ["MIT"], "waiver": [waiver]}
    lock = defective_lock(sources, ALLOW_ALL)
    tar, _ = make_bundle_of(lock, sources.store, folder / "a.bundle.tar", key, policy=policy)
    report = make_report(tar, ReportOptions(now=NOW, trust=key.trust), Silent())
    return {"en": render_page(report.document, "en"), "ko": render_page(report.document, "ko")}


def browse(folder: Path, page: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Open a page in a browser that has no network."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    first, *isolation = find_isolation().prefix
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [program(first), *isolation, "chromium", *OPTIONS, profile, *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_shows_one_language(
    pages: Mapping[Language, str], tmp_path: Path, language: Language, width: int
) -> None:
    # A window can't be narrower than 500 pixels, a frame can.
    page = pages[language].replace("default-src 'none'", "default-src 'unsafe-inline'")
    inner = tmp_path / "inner.html"
    inner.write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    outer = (
        f"<iframe id=f width={width} height=900 style='border:0' src=inner.html></iframe>"
        "<script>f.onload = () => { document.title = f.contentDocument.title }</script>"
    )
    done = browse(tmp_path, outer, "--window-size=1400,1000", "--allow-file-access-from-files", "--dump-dom")
    title = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert title is not None, done.stdout[:300]
    assert title[1] == f"{width} {width} {language}"


def test_a_screenshot_has_something_on_it(pages: Mapping[Language, str], tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(tmp_path, pages["en"], "--window-size=1280,2400", f"--screenshot={shot}")
    data = shot.read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1280, 2400)
    assert len(data) > 100_000


def test_it_prints_as_tables_on_few_pages(pages: Mapping[Language, str], tmp_path: Path) -> None:
    paper = tmp_path / "paper.pdf"
    browse(tmp_path, pages["en"], "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", data)) <= 8


def requests_of(folder: Path, page: str) -> set[str]:
    """Return the addresses that a browser asks for when it shows a page, its own errands included."""
    folder.mkdir()
    log = folder / "net.json"
    browse(folder, page, f"--log-net-log={log}", "--dump-dom", "--disable-background-networking")
    return set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]+)"', log.read_text(encoding="utf-8")))


def test_the_page_asks_for_nothing(pages: Mapping[Language, str], tmp_path: Path) -> None:
    named = set(re.findall(r"https?://([\w.-]+)", pages["ko"])) | {"evil.example"}
    assert "index.example" in named
    asked = requests_of(tmp_path / "page", pages["ko"])
    assert {url for url in asked if any(host in url for host in named)} == set()
    image = "<img src='http://evil.example/x'>"
    assert "http://evil.example/x" in requests_of(tmp_path / "control", image)
    guarded = pages["ko"].replace("</main>", f"{image}</main>")
    assert "http://evil.example/x" not in requests_of(tmp_path / "guarded", guarded)
