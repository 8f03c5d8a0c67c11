"""What a prefix remembers, and how it reads its own files back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.errors import AdapterError, DiskError, IntegrityError, PolicyError, UsageError
from manifests.manifest import ModelEntry
from runtime.launch import check_models, server_command
from runtime.layout import Prefix, Receipt, Release, make_folder
from runtime.state import State, advance_state, check_may_install, load_state
from tests.factories import make_manifest, make_release_folder

STATE = State(name="demo", sequence=5, created="2026-01-01T00:00:00Z", previous="1.0-aa")
MANIFEST = make_manifest({}, sequence=5)


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """An empty prefix."""
    return Prefix(path=tmp_path)


def test_state_reads_back(prefix: Prefix) -> None:
    assert load_state(prefix) is None
    prefix.state.write_bytes(STATE.encode())
    assert load_state(prefix) == STATE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "state.json: not JSON: "),
        ("[]", "state.json: : expected a table, got a list"),
        ('{"name": 3}', "state.json: name: expected a string, got an integer"),
        ('{"name": "a", "sequence": -1, "created": ""}', "state.json: sequence: -1 is less than 0"),
        ('{"nane": "a"}', "state.json: nane: unknown key"),
    ],
)
def test_a_damaged_state(prefix: Prefix, text: str, message: str) -> None:
    prefix.state.write_text(text)
    with pytest.raises(IntegrityError) as caught:
        load_state(prefix)
    assert message in caught.value.message


def test_who_may_install() -> None:
    check_may_install(None, MANIFEST, allow_downgrade=False)
    check_may_install(STATE, MANIFEST, allow_downgrade=False)
    check_may_install(STATE, replace(MANIFEST, sequence=6), allow_downgrade=False)
    check_may_install(STATE, replace(MANIFEST, sequence=4), allow_downgrade=True)
    with pytest.raises(PolicyError, match=r"bundle 1\.0\.0 \(sequence 4, .*\) is older than what was installed here"):
        check_may_install(STATE, replace(MANIFEST, sequence=4), allow_downgrade=False)
    with pytest.raises(UsageError, match="the prefix holds bundle 'demo', this bundle is 'other'"):
        check_may_install(STATE, replace(MANIFEST, name="other"), allow_downgrade=True)


def test_the_maxima_never_go_back(prefix: Prefix) -> None:
    advance_state(prefix, STATE, replace(MANIFEST, sequence=4, created="2025-01-01T00:00:00Z"), previous="x")
    assert load_state(prefix) == replace(STATE, previous="x")
    advance_state(prefix, STATE, replace(MANIFEST, sequence=6), previous="")
    assert load_state(prefix) == State(name="demo", sequence=6, created=MANIFEST.created, previous="")


def test_a_receipt_reads_back(tmp_path: Path) -> None:
    receipt = Receipt(digest="d", installed="t", signers=("a", "b"), python="/p", stats={"docs/a": (1, 2, 3)})
    (tmp_path / "receipt.json").write_bytes(receipt.encode())
    assert Release(path=tmp_path).receipt() == receipt


@pytest.mark.parametrize("stats", [{"a": [1, 2]}, {"a": "x"}, {"a": [1, 2, "3"]}])
def test_a_damaged_receipt(tmp_path: Path, stats: object) -> None:
    document = {"digest": "d", "installed": "t", "signers": [], "python": "/p", "stats": stats}
    (tmp_path / "receipt.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"receipt\.json: stats: a: expected size, mtime and inode"):
        Release(path=tmp_path).receipt()
    (tmp_path / "receipt.json").unlink()
    with pytest.raises(IntegrityError, match=r"receipt\.json: missing"):
        Release(path=tmp_path).receipt()


def test_live_is_a_complete_release_of_this_prefix(prefix: Prefix, tmp_path: Path) -> None:
    release = prefix.releases / "1.0-aa"
    release.mkdir(parents=True)
    assert prefix.live() is None
    prefix.current.symlink_to("releases/1.0-aa")
    assert prefix.live() is None, "no receipt, so not a release"
    (release / "receipt.json").write_text("{}")
    live = prefix.live()
    assert live is not None
    assert live.name == "1.0-aa"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "receipt.json").write_text("{}")
    prefix.current.unlink()
    prefix.current.symlink_to("elsewhere")
    assert prefix.live() is None


def test_make_folder_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="something that isn't a folder is there"):
        make_folder(tmp_path / "file")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_check_models() -> None:
    tiny = ModelEntry(name="minilm", adapter="hcx", path="models/minilm", format="safetensors", origin="")
    manifest = make_manifest({"models/minilm/config.json": b"{}"}, models=(tiny,))
    check_models(manifest, [])
    check_models(manifest, ["minilm"])
    with pytest.raises(UsageError) as caught:
        check_models(manifest, ["minilms"])
    assert caught.value.render() == "error: the release has no model 'minilms'\nhint: did you mean 'minilm'?"
    with pytest.raises(AdapterError, match="the release has no models to launch"):
        check_models(MANIFEST, [])


def test_the_server_runs_isolated_and_sealed(prefix: Prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    release = Release(path=make_release_folder(prefix.releases, MANIFEST))
    command = server_command(prefix, release, "runtime.server", ("--port", "1"))
    assert command.arguments == (
        f"{release.path}/venv/bin/python",
        "-I",
        "-X",
        f"pycache_prefix={prefix.path}/var/cache/bytecode/{release.name}",
        "-m",
        "runtime.server",
        "--release",
        str(release.path),
        "--port",
        "1",
    )
    assert "HF_TOKEN" not in command.environment
    assert command.environment["HF_HUB_OFFLINE"] == "1"
    assert command.environment["HOME"] == f"{prefix.path}/var/run"
