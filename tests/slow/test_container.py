"""The image of an installed bundle: built without network by Dockerfile.offline, run without rights, asked."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories import is_root
from tests.factories_cli import ROOT
from tests.factories_closed import program
from tests.factories_containers import BASE, Engine, container_engine
from tests.slow.conftest import Built

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_root(), reason="an image storage of overlays needs root"),
]
PYTHON = "/opt/sealift/current/venv/bin/python"
ASK = """
import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000" + sys.argv[1], headers={"Content-Type": "application/json"},
                                 data=sys.argv[2].encode() if len(sys.argv) > 2 else None)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Path:
    """What an operator lays out: the unpacked bundle, and the kit."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "bundle").mkdir()
    subprocess.run([program("tar"), "-xf", built.bundle, "-C", folder / "bundle"], check=True)
    shutil.copytree(built.kit, folder / "kit")
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Engine]:
    """An engine that has built the image ``localhost/demo``."""
    with container_engine(tmp_path_factory.mktemp("storage")) as made:
        made.add_base()
        made.build(site, site / "kit" / "Dockerfile.offline", "localhost/demo", BASE=BASE)
        yield made


def test_dockerfile_at_the_root_is_the_one_that_travels(site: Path) -> None:
    own = (ROOT / "Dockerfile.offline").read_bytes()
    assert (site / "kit" / "Dockerfile.offline").read_bytes() == own
    assert (site / "bundle" / "bootstrap" / "Dockerfile.offline").read_bytes() == own


def test_models_are_a_layer_of_their_own_and_nothing_is_twice(engine: Engine) -> None:
    (image,) = json.loads(engine.podman("image", "inspect", "localhost/demo"))
    (base,) = json.loads(engine.podman("image", "inspect", BASE))
    own = image["RootFS"]["Layers"][len(base["RootFS"]["Layers"]) :]
    assert len(own) == 3  # models, the rest, the mode of var
    assert image["Config"]["User"] == "10001"
    mounted = Path(engine.podman("image", "mount", "localhost/demo").strip())
    inside = sum(path.lstat().st_size for path in (mounted / "opt" / "sealift").rglob("*") if path.is_file())
    engine.podman("image", "unmount", "localhost/demo")
    assert image["Size"] - base["Size"] < 1.1 * inside


def test_served_read_only_without_rights_and_network(engine: Engine) -> None:
    with engine.running("localhost/demo", "--tmpfs", "/opt/sealift/var") as name:
        ready = wait_ready(engine, name)
        assert sorted(ready["loaded"]) == ["bert", "hcx", "llama", "xlmr"]
        question = json.dumps({"model": "bert", "input": ["a ship carries sealed goods"]})
        answer = json.loads(engine.podman("exec", name, PYTHON, "-I", "-c", ASK, "/v1/embeddings", question))
        assert len(answer["data"]) == 1
        assert engine.podman("exec", name, "id", "-u").strip() == "10001"
        engine.podman("healthcheck", "run", name)
        engine.podman("stop", "-t", "60", name)
        (state,) = json.loads(engine.podman("inspect", name))
        assert state["State"]["ExitCode"] == 0
        logs = engine.logs(name)
        assert "ok       files" in logs
        assert "ok       venv" in logs


def test_a_changed_module_is_never_launched(engine: Engine, tmp_path: Path) -> None:
    recipe = tmp_path / "Dockerfile"
    module = "/opt/sealift/current/venv/lib/python3.11/site-packages/starlette/routing.py"
    recipe.write_text(f"FROM localhost/demo\nUSER 0\nRUN chmod u+w {module} && echo '#' >> {module}\nUSER 10001\n")
    engine.build(tmp_path, recipe, "localhost/changed")
    with engine.running("localhost/changed", "--tmpfs", "/opt/sealift/var") as name:
        engine.podman("wait", name)
        (state,) = json.loads(engine.podman("inspect", name))
        assert state["State"]["ExitCode"] == 5
        assert "starlette/routing.py" in engine.logs(name)


def wait_ready(engine: Engine, name: str) -> dict[str, list[str]]:
    """Return what /ready says once it says so."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        answer = engine.podman("exec", name, PYTHON, "-I", "-c", ASK, "/ready", check=False)
        if answer:
            ready: dict[str, list[str]] = json.loads(answer)
            return ready
        (state,) = json.loads(engine.podman("inspect", name))
        assert state["State"]["Running"], engine.logs(name)
        time.sleep(1)
    raise AssertionError(engine.logs(name))
