"""The operator's own variables: over the release's, key by key, through upgrades, and never through the seal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from manifests.errors import UsageError
from runtime.launch import SERVER_MODULE, _log_level, server_command
from runtime.layout import Prefix, Release
from runtime.overrides import load_variables
from runtime.seal import OFFLINE_VARIABLES
from tests.factories import Key, make_manifest, make_release_folder
from tests.factories_closed import closed_files, make_closed_bundle, make_host

SIGNED: Final = (
    '# signed\nLOG_LEVEL=INFO\nCACHE_DIR=${PREFIX}/var/cache\nHF_HUB_OFFLINE=1\nGREETING="a \\"b\\" \\\\ 한글"\n'
)
MANIFEST: Final = make_manifest({"config/offline.env": SIGNED.encode()})


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """Return a prefix with ``etc/`` and one release that has the variables of SIGNED."""
    (tmp_path / "etc").mkdir()
    config = make_release_folder(tmp_path / "releases", MANIFEST) / "config"
    config.mkdir()
    (config / "offline.env").write_text(SIGNED, encoding="utf-8")
    return Prefix(path=tmp_path)


def release_of(prefix: Prefix) -> Release:
    (folder,) = prefix.releases.iterdir()
    return Release(path=folder)


def write(prefix: Prefix, text: str) -> None:
    (prefix.etc / "offline.env").write_text(text, encoding="utf-8")


def test_the_release_alone(prefix: Prefix) -> None:
    found = load_variables(prefix, release_of(prefix))
    assert found.values == {
        "LOG_LEVEL": "INFO",
        "CACHE_DIR": f"{prefix.path}/var/cache",
        "GREETING": 'a "b" \\ 한글',
    }
    assert found.notes == ()


def test_the_operators_file_overrides_key_by_key(prefix: Prefix) -> None:
    write(prefix, "\ufeff# mine\n\nexport LOG_LEVEL='DEBUG'\nCACHE_DIR = ${RELEASE}/c\nOMP_NUM_THREADS=3\n")
    found = load_variables(prefix, release_of(prefix))
    assert found.values["LOG_LEVEL"] == "DEBUG"
    assert found.values["CACHE_DIR"] == f"{release_of(prefix).path}/c"
    assert found.values["GREETING"] == 'a "b" \\ 한글'
    assert found.values["OMP_NUM_THREADS"] == "3"
    assert found.notes == ()


def test_what_has_no_effect_is_named(prefix: Prefix) -> None:
    write(prefix, "LOG_LEVL=DEBUG\nLD_PRELOAD=/x.so\nHF_HUB_OFFLINE=0\nHF_TOKEN=hunter2\n")
    found = load_variables(prefix, release_of(prefix))
    assert sorted(found.values) == ["CACHE_DIR", "GREETING", "LOG_LEVEL"]
    assert found.values["LOG_LEVEL"] == "INFO"
    path = prefix.etc / "offline.env"
    assert found.notes == (
        f"{path}: LOG_LEVL has no effect: this release has no such variable; did you mean 'LOG_LEVEL'?",
        f"{path}: LD_PRELOAD has no effect: this release has no such variable",
        f"{path}: HF_HUB_OFFLINE=0 has no effect: the seal fixes it at 1",
        f"{path}: HF_TOKEN has no effect: this release has no such variable",
    )


def test_a_line_that_is_none_is_named(prefix: Prefix) -> None:
    write(prefix, "LOG_LEVEL=INFO\nrm -rf /\n")
    with pytest.raises(UsageError) as caught:
        load_variables(prefix, release_of(prefix))
    assert caught.value.message == f"{prefix.etc / 'offline.env'}, line 2: expected KEY=VALUE, got 'rm -rf /'"
    (prefix.etc / "offline.env").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"offline\.env: is not UTF-8 text$"):
        load_variables(prefix, release_of(prefix))


def test_a_launched_process_has_them_and_keeps_them_when_it_seals_itself(
    prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "the shell's")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("SEALIFT_SETTINGS", "HF_TOKEN")
    write(prefix, "LOG_LEVEL=DEBUG\nHF_HUB_OFFLINE=0\nENABLE_MODEL_CACHE=true\n")
    command = server_command(prefix, release_of(prefix), SERVER_MODULE, [])
    assert len(command.notes) == 2
    script = (
        "import json, os, pathlib; from runtime.seal import seal_process;"
        "seal_process(cache=pathlib.Path('/nonexistent')); print(json.dumps(dict(os.environ)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=command.environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    seen = json.loads(done.stdout)
    assert (seen["LOG_LEVEL"], seen["GREETING"]) == ("DEBUG", 'a "b" \\ 한글')
    assert {key: seen[key] for key in OFFLINE_VARIABLES} == dict(OFFLINE_VARIABLES)
    assert "HF_TOKEN" not in seen
    assert "ENABLE_MODEL_CACHE" not in seen
    assert seen["HOME"] == str(prefix.var / "run")


def test_a_probe_computes_its_answers(prefix: Prefix) -> None:
    path = release_of(prefix).path / "config" / "offline.env"
    path.write_text("ENABLE_MODEL_CACHE=true\n")
    served = server_command(prefix, release_of(prefix), SERVER_MODULE, []).environment
    probed = server_command(prefix, release_of(prefix), "runtime.server.probe", []).environment
    assert (served["ENABLE_MODEL_CACHE"], probed["ENABLE_MODEL_CACHE"]) == ("true", "false")


def test_the_level_of_the_log() -> None:
    assert _log_level("") == []
    assert _log_level("WARNING") == ["--log-level", "warning"]
    with pytest.raises(UsageError, match=r"^LOG_LEVEL: expected one of debug, info, warning, error, got 'LOUD'$"):
        _log_level("LOUD")


def test_overrides_survive_an_upgrade_and_a_rollback(tmp_path: Path, key: Key) -> None:
    host = make_host(tmp_path / "host")
    files = closed_files("six")
    signed = files["config/offline.env"]
    assert isinstance(signed, bytes)
    newer = {**files, "config/offline.env": signed.replace(b"LOG_LEVEL=INFO", b"LOG_LEVEL=WARNING") + b"NEW=1\n"}
    bundles = [
        make_closed_bundle(tmp_path / "one", key, files=files),
        make_closed_bundle(tmp_path / "two", key, files=newer, version="2.0.0", sequence=1900000000),
    ]
    prefix = Prefix(path=tmp_path / "prefix")

    def install(index: int) -> dict[str, str]:
        bundle = bundles[index]
        arguments = ("install", bundle.tar, "--prefix", prefix.path, "--trust", bundle.trust)
        done = host.runtime(bundle.pyz, *arguments)
        assert done.returncode == 0, done.stderr
        return dict(load_variables(prefix, prefix.require_live()).values)

    assert install(0)["LOG_LEVEL"] == "INFO"
    (prefix.etc / "offline.env").write_text("CACHE_DIR=/data/cache\n")
    upgraded = install(1)
    assert (upgraded["CACHE_DIR"], upgraded["LOG_LEVEL"], upgraded["NEW"]) == ("/data/cache", "WARNING", "1")
    assert (prefix.etc / "offline.env").read_text() == "CACHE_DIR=/data/cache\n"
    done = host.runtime(bundles[0].pyz, "rollback", "--prefix", prefix.path)
    assert done.returncode == 0, done.stderr
    rolled_back = load_variables(prefix, prefix.require_live()).values
    assert (rolled_back["CACHE_DIR"], rolled_back["LOG_LEVEL"]) == ("/data/cache", "INFO")
    assert "NEW" not in rolled_back
