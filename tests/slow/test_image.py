"""The image that ``bundler image`` makes without an engine: loaded by one, run without rights, asked, verified."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.factories import Key, is_root
from tests.factories_cli import ROOT
from tests.factories_closed import flip_bit, make_closed_bundle, program
from tests.factories_containers import BASE, Engine, container_engine
from tests.slow.conftest import Built, bundler
from tests.slow.test_container import ASK, PYTHON, wait_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_root(), reason="an image storage of overlays needs root"),
]
IMAGE = "localhost/sealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The image's layout, what the command said of it, and the Kustomize base."""

    layout: Path
    document: dict[str, Any]
    kustomize: Path

    def blob(self, digest: str) -> dict[str, Any]:
        """Return a JSON document of the layout."""
        found: dict[str, Any] = json.loads((self.layout / "blobs" / digest.replace(":", "/")).read_bytes())
        return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that holds the site's base image alone."""
    with container_engine(tmp_path_factory.mktemp("storage")) as made:
        made.add_base()
        yield made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Path:
    """The base image as an OCI layout."""
    folder = tmp_path_factory.mktemp("base") / "layout"
    engine.buildah("push", "-q", BASE, f"oci:{folder}")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, engine: Engine, built: Built, base: Path) -> Made:
    """The image of the bundle with four models, in a layout and in the engine's storage."""
    folder = tmp_path_factory.mktemp("image")
    words = ("--output", "layout", "--trust", built.kit / "allowed_signers", "--tag", "site/demo:1", "--json")
    done = bundler(folder, "image", built.bundle, "--base", base, "--kustomize", "kustomize", *words)
    storage = f"containers-storage:[overlay@{engine.folder / 'root'}+{engine.state}]{IMAGE}"
    command = [program("skopeo"), "--insecure-policy", "copy", "-q", f"oci:{folder / 'layout'}:site/demo:1", storage]
    subprocess.run(command, check=True)
    return Made(layout=folder / "layout", document=json.loads(done.stdout), kustomize=folder / "kustomize")


def test_layers_are_the_base_the_models_and_the_rest(engine: Engine, made: Made, base: Path) -> None:
    (image,) = json.loads(engine.podman("image", "inspect", IMAGE))
    (site,) = json.loads(engine.podman("image", "inspect", BASE))
    count = len(site["RootFS"]["Layers"])
    assert image["RootFS"]["Layers"][:count] == site["RootFS"]["Layers"]
    assert [layer["title"] for layer in made.document["layers"]] == ["models", "release"]
    assert image["RootFS"]["Layers"][count:] == [layer["digest"] for layer in made.document["layers"]]
    assert image["Config"]["User"] == "10001"
    assert image["Config"]["Labels"]["io.sealift.manifest.digest"] == made.document["manifest_digest"]
    mounted = Path(engine.podman("image", "mount", IMAGE).strip())
    inside = sum(path.lstat().st_size for path in (mounted / "opt" / "sealift").rglob("*") if path.is_file())
    engine.podman("image", "unmount", IMAGE)
    sizes = sum(layer["size"] for layer in made.document["layers"])
    assert inside <= sizes < 1.1 * inside  # uncompressed, nothing twice
    names = {path.name for path in (made.layout / "blobs" / "sha256").iterdir()}
    base_layers = json.loads((base / "index.json").read_text())["manifests"]
    assert len(base_layers) == 1
    assert len(names) == count + 4  # the base's layers, two more, manifest and config


def test_served_read_only_without_rights_and_network(engine: Engine, made: Made) -> None:
    with engine.running(IMAGE, "--tmpfs", "/opt/sealift/var:mode=1777") as name:
        ready = wait_ready(engine, name)
        assert sorted(ready["loaded"]) == ["bert", "hcx", "llama", "xlmr"]
        question = json.dumps({"model": "bert", "input": ["a ship carries sealed goods"]})
        answer = json.loads(engine.podman("exec", name, PYTHON, "-I", "-c", ASK, "/v1/embeddings", question))
        assert len(answer["data"]) == 1
        assert engine.podman("exec", name, "id", "-u").strip() == "10001"
        kit = "/opt/sealift/kit"
        words = ("verify", "--prefix", "/opt/sealift", "--trust", f"{kit}/allowed_signers", "--json")
        report = engine.podman("exec", name, PYTHON, "-I", "-S", f"{kit}/runtime.pyz", *words)
        assert json.loads(report)["digest"] == made.document["manifest_digest"]
        engine.podman("stop", "-t", "60", name)
        (state,) = json.loads(engine.podman("inspect", name))
        assert state["State"]["ExitCode"] == 0
        logs = engine.logs(name)
        assert "ok       files" in logs
        assert "ok       venv" in logs


def test_models_of_a_volume_are_verified_before_the_server(
    engine: Engine, made: Made, built: Built, tmp_path: Path
) -> None:
    """What the component's first container runs, as its user, on a volume that was filled as the component says."""
    patch = yaml.safe_load((made.kustomize / "models-volume" / "patch.yaml").read_text())
    (check,) = patch["spec"]["template"]["spec"]["initContainers"]
    (place,) = (mount["mountPath"] for mount in check["volumeMounts"] if mount["name"] == "models")
    subprocess.run([program("tar"), "-xf", built.bundle, "-C", tmp_path, "models"], check=True)
    subprocess.run([program("chmod"), "-R", "a=rX", tmp_path / "models"], check=True)
    options = ("--volume", f"{tmp_path / 'models'}:{place}:ro", "--entrypoint", json.dumps(check["command"]))
    assert verified(engine, options) == 0
    weights = min((tmp_path / "models").rglob("*.safetensors"))
    flip_bit(weights, weights.stat().st_size - 1)
    assert verified(engine, options) == 5


def verified(engine: Engine, options: tuple[str, ...]) -> int:
    """Return the exit code of a container whose process ends by itself."""
    with engine.running(IMAGE, "--tmpfs", "/opt/sealift/var", *options) as name:
        return int(engine.podman("wait", name))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
def test_kustomize_takes_the_base_and_the_component(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.kustomize, tmp_path / "base")
    pinned = f"image: site/demo@{made.document['digest']}"
    assert kustomized(folder).count(pinned) == 1
    top = folder / "kustomization.yaml"
    top.write_text(top.read_text().replace("# components:\n#   - ", "components:\n  - "))
    with_volume = kustomized(folder)
    assert with_volume.count(pinned) == 2  # the server, and what verifies the volume before it
    assert "claimName: demo-models" in with_volume
    assert with_volume.count("mountPath: /opt/sealift/var") == 2


def kustomized(folder: Path) -> str:
    """Return what kubectl makes of a folder; nothing is asked of any cluster."""
    done = subprocess.run([program("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_installs_give_one_digest(tmp_path: Path, key: Key, base: Path) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", key, "six", "click")
    for name in ("one", "two"):
        words = ("--output", tmp_path / name, "--trust", bundle.trust)
        bundler(tmp_path, "image", bundle.tar, "--base", base, *words)
    done = subprocess.run([program("diff"), "-r", tmp_path / "one", tmp_path / "two"], check=False)
    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def test_a_failed_install_keeps_its_exit_code_and_leaves_nothing(tmp_path: Path, key: Key, base: Path) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", key, extra={"wheels/broken-1.0-py3-none-any.whl": b"no zip"})
    words = ("--base", base, "--output", tmp_path / "image", "--trust", bundle.trust)
    done = subprocess.run(
        [sys.executable, "-m", "bundler.cli", "image", bundle.tar, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    assert "the install in the base image failed with exit code 8:" in done.stderr
    assert "broken" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
