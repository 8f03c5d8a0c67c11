"""The table of command against form in the format's page, walked: what it promises works, the rest is refused."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from bundler.publishing.registries import push_bundle
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.reference import is_reference
from tests.factories import Key, unpack_bundle
from tests.factories_cli import ROOT
from tests.factories_closed import HOST_TARGET
from tests.factories_media import cut
from tests.factories_registry import RegistryServer, registry_server, remote_to
from tests.hostile.lab import FILES
from tests.hostile.lab import MANIFEST as LAB_MANIFEST

FORMS: Final = ("tar", "`.001`", "folder", "`-`", "`oci://`")
GOOD: Final[Mapping[str, tuple[int, str]]] = {
    "runtime preflight": (0, "ok       python"),
    "runtime verify": (0, "good: demo-1.0.0-"),
    "runtime install": (6, "the bundle carries no uv"),
    "runtime repair": (0, "# 0 damaged chunks found, 0 remain"),
    "bundler inspect": (0, "manifest digest "),
    "bundler manifest": (0, "urn:sealift:bundle-manifest:1"),
    "bundler diff": (0, "a delta carries "),
    "bundler sign": (0, " signatures"),
    "bundler rehearse": (6, "the bundle carries no uv"),
    "bundler extract-chunks": (0, "repair.bin: 1 chunks, "),
    "bundler push": (0, " blobs sent, "),
}
"""How each command ends with a bundle it can read; the small one has no uv, which is noticed last of all."""


def table() -> dict[str, dict[str, str]]:
    """Return command -> form -> cell."""
    text = (ROOT / "docs/reference/bundle-format.md").read_text(encoding="utf-8")
    section = text.partition("### 5.5 ")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    head, _, *body = rows
    assert tuple(head[1:]) == FORMS
    return {row[0].strip("`"): dict(zip(FORMS, row[1:], strict=True)) for row in body}


NO_REGISTRY: Final = {command for command, cells in table().items() if cells["`oci://`"] == "no"}
CELLS: Final = [(command, form, cell) for command, cells in table().items() for form, cell in cells.items()]


def test_the_table_has_every_command() -> None:
    assert set(table()) == set(GOOD)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry for the bundle; never stop it."""
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def forms(tmp_path: Path, key: Key, registry: RegistryServer) -> dict[str, str | Path]:
    """The same small bundle in every form."""
    from tests.factories import make_bundle  # noqa: PLC0415 # beside its only use

    tar = tmp_path / "demo.bundle.tar"
    make_bundle(tar, FILES, key=key, executable=["bootstrap/install.sh"], target=HOST_TARGET)
    folder = unpack_bundle(tar, tmp_path / "unpacked")
    with open_medium(tar) as medium:
        push_bundle(medium, remote_to(registry.host), Silent(), {"HOME": str(tmp_path)})
    place = str(remote_to(registry.host))
    return {
        "`oci://`": place,
        "tar": tar,
        "`.001`": cut(tar, 100_000, tmp_path / "volumes")[0],
        "folder": folder,
        "`-`": Path("-"),
    }


def words_of(command: str, bundle: str | Path, folder: Path, key: Key, registry: RegistryServer) -> list[str]:
    trust = ("--trust", str(key.allowed_signers))
    chunk = folder / "chunks.txt"
    chunk.write_text(f"{LAB_MANIFEST.files[-1].sha256}\n")
    pushed = (str(remote_to(registry.host, "pushed")), "--plain-http")
    plain = ("--plain-http",) if is_reference(str(bundle)) and command not in NO_REGISTRY else ()
    more: dict[str, tuple[str, ...]] = {
        "bundler push": pushed,
        "runtime verify": trust,
        "runtime install": (*trust, "--prefix", str(folder / "prefix")),
        "runtime repair": (*trust, "--list"),
        "bundler diff": (str(bundle),),
        "bundler sign": ("--key", str(key.path)),
        "bundler rehearse": trust,
        "bundler extract-chunks": ("--chunks", str(chunk), "--output", str(folder / "repair.bin")),
    }
    return [command.split()[1], str(bundle), *more.get(command, ()), *plain]


@pytest.mark.parametrize(("command", "form", "cell"), CELLS, ids=[f"{one}-{form}" for one, form, _ in CELLS])
def test_a_cell(
    forms: dict[str, str | Path],
    tmp_path: Path,
    key: Key,
    registry: RegistryServer,
    *,
    command: str,
    form: str,
    cell: str,
) -> None:
    bundle = forms[form]
    if cell == "yes, alone":
        assert isinstance(bundle, Path)
        for path in bundle.parent.glob("*.tar.[0-9][0-9][0-9]"):
            if path != bundle:
                path.unlink()
    program = command.split(maxsplit=1)[0]
    done = subprocess.run(
        [sys.executable, "-m", f"{program}.cli", *words_of(command, bundle, tmp_path, key, registry)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        input=Path(forms["tar"]).read_bytes() if form == "`-`" else b"",
        capture_output=True,
        check=False,
        timeout=120,
    )
    said = (done.stdout + done.stderr).decode()
    assert "Traceback" not in said
    if cell == "no":
        assert (done.returncode, ("reads no registry" if is_reference(str(bundle)) else "standard input") in said) == (
            2,
            True,
        )
    else:
        assert re.fullmatch("yes(, alone)?", cell)
        code, words = GOOD[command]
        assert (done.returncode, words in said) == (code, True), said
