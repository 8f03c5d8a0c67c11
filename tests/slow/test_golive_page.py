"""A filed go-live report of a release with models, as a browser shows it: on a desk, on a telephone, on paper."""

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.factories_closed import make_host
from tests.slow.conftest import ADAPTERS, Built

pytestmark = [pytest.mark.slow, pytest.mark.models]
CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
MARGIN: Final = 12  # pixels that the page leaves free at its right edge, on the narrowest screen too


@pytest.fixture(scope="module")
def filed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The report of a release of four tiny models, verified where no network is: its data, and its page."""
    folder = tmp_path_factory.mktemp("golive")
    host = make_host(folder / "home")
    words = ("--prefix", folder / "prefix", "--trust", built.kit / "allowed_signers")
    pyz = built.kit / "runtime.pyz"
    done = host.run(*host.runtime_words(pyz, "install", built.bundle, *words), timeout=600)
    assert done.returncode == 0, done.stderr
    done = host.run(*host.runtime_words(pyz, "verify", *words, "--report", folder / "out"), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = (folder / "out").glob("*.html")
    return json.loads(page.with_suffix(".json").read_text()), page


def test_every_model_was_asked_and_nobody_left_the_host(filed: tuple[dict[str, Any], Path]) -> None:
    document, page = filed
    assert [model["name"] for model in document["models"]] == sorted(ADAPTERS, key=list(ADAPTERS).index)
    assert all(model["device"] == "cpu" and model["probes"] == 1 for model in document["models"])
    network = document["network"]
    assert (network["default_routes"], network["attempts"], network["interfaces"]) == ([], [], [])
    assert network["unroutable_packets"] == 0, "the kernel's own count, in a namespace that only this ran in"
    assert all(name in page.read_text() for name in ADAPTERS)


def browser(*words: str) -> None:
    assert CHROMIUM is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    subprocess.run([CHROMIUM, *options, *words], check=True, capture_output=True, timeout=120)


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_over_the_edge(filed: tuple[dict[str, Any], Path], tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    browser(f"--window-size={width},2400", f"--screenshot={picture}", filed[1].as_uri())
    rows = list(pixels(picture.read_bytes()))
    assert len(rows[0]) == width * 3
    assert any(set(row) != {255} for row in rows), "something is shown"
    assert all(set(row[-3 * MARGIN :]) == {255} for row in rows)


@needs_browser
def test_it_prints_on_a_few_pages(filed: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    browser(f"--print-to-pdf={paper}", filed[1].as_uri())
    pages = re.findall(rb"/Type\s*/Page\b(?!s)", paper.read_bytes())
    assert 1 <= len(pages) <= 5


def pixels(data: bytes) -> Iterator[bytes]:
    """Yield the rows of a PNG of 8-bit RGB or RGBA as RGB bytes (PNG specification, 9: filtering)."""
    chunks: dict[bytes, bytes] = {}
    offset = 8
    while offset < len(data):
        (size,), kind = struct.unpack(">I", data[offset : offset + 4]), data[offset + 4 : offset + 8]
        chunks[kind] = chunks.get(kind, b"") + data[offset + 8 : offset + 8 + size]
        offset += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour in {2, 6}) == (8, True)
    step = 3 if colour == 2 else 4
    raw, stride = zlib.decompress(chunks[b"IDAT"]), width * step + 1
    before = bytearray(width * step)
    for start, end in pairwise(range(0, stride * (height + 1), stride)):
        before = unfilter(raw[start], bytearray(raw[start + 1 : end]), before, step)
        yield bytes(value for index, value in enumerate(before) if index % step < 3)


def unfilter(kind: int, row: bytearray, above: bytearray, step: int) -> bytearray:
    for index in range(len(row)):
        left = row[index - step] if index >= step else 0
        corner = above[index - step] if index >= step else 0
        up = above[index]
        distances = (abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
        paeth = (left, up, corner)[distances.index(min(distances))]
        row[index] = (row[index] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
    return row
