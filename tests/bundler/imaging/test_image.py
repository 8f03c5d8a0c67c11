"""Images made of a tiny bundle: the same bytes each time, nothing of the builder in them, nothing unverified."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bundler.imaging.image import Image, ImageOrder, make_image
from bundler.imaging.inside import OTHER_WAY, Inside, Installer, install_inside
from bundler.imaging.recipe import load_recipe
from manifests.errors import HostError, IntegrityError, SealiftError, TrustError, UsageError
from manifests.manifest import Target
from tests.factories import SMALL_FILES, Key, make_bundle, tree_of
from tests.factories_cli import ROOT
from tests.factories_closed import HOST_TARGET
from tests.factories_images import ARCHITECTURE, SYSTEM, SYSTEM_LAYER, Member, PretendInstall, make_layout

FILES = {**SMALL_FILES, "bootstrap/runtime.pyz": b"the verifier"}
CREATED = 1767323045  # the factory's 2026-01-02T03:04:05Z


@pytest.fixture
def bundle(tmp_path: Path, key: Key) -> Path:
    """A signed bundle for this host."""
    return make_bundle(tmp_path, FILES, key=key, executable=["bootstrap/install.sh"], target=HOST_TARGET)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base image with an entrypoint of its own."""
    config = {"Cmd": ["bash"], "Env": ["PATH=/usr/bin", "PORT=1"], "Labels": {"site": "x"}, "WorkingDir": "/srv"}
    return make_layout(tmp_path / "base", config=config, history=[{"created_by": "site"}], author="site")


def content_of(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    assert stream is not None, name
    return stream.read()


def order(bundle: Path, base: Path, key: Key, name: str = "image", **more: str) -> ImageOrder:
    trust = more.pop("trust", key.allowed_signers.read_text())
    return ImageOrder(bundle=bundle, base=base, output=bundle.parent / name, trust=trust, **more)


def make(given: ImageOrder, install: Installer | None = None) -> Image:
    return make_image(given, lambda _: None, install=install or PretendInstall())


def blob(folder: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "blobs" / digest.replace(":", "/")).read_bytes())
    return found


def members_of(folder: Path, digest: str) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(folder / "blobs" / digest.replace(":", "/"), "r:") as archive:
        members = archive.getmembers()
    assert len({member.name for member in members}) == len(members)
    return {member.name: member for member in members}


def test_the_same_bundle_and_base_give_the_same_image(bundle: Path, base: Path, key: Key) -> None:
    install = PretendInstall()
    first = make(order(bundle, base, key, "one"), install)
    second = make(order(bundle, base, key, "two"), install)
    assert first.digest == second.digest
    assert tree_of(bundle.parent / "one") == tree_of(bundle.parent / "two")
    assert [path for path in bundle.parent.iterdir() if path.name.endswith(".partial")] == []


def test_every_blob_has_the_name_of_its_content(bundle: Path, base: Path, key: Key) -> None:
    image = make(order(bundle, base, key))
    blobs = image.output / "blobs" / "sha256"
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs.iterdir()} == {
        path.name: path.name for path in blobs.iterdir()
    }
    assert json.loads((image.output / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((image.output / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == image.digest
    assert entry["platform"] == {"os": SYSTEM, "architecture": ARCHITECTURE}
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "demo:1.0.0"}


def test_layers_are_models_and_the_rest(bundle: Path, base: Path, key: Key) -> None:
    image = make(order(bundle, base, key))
    assert [title for title, _ in image.layers] == ["models", "release"]
    release = f"opt/sealift/releases/1.0.0-{image.manifest_digest[:12]}"
    models, rest = (members_of(image.output, layer.digest) for _, layer in image.layers)
    assert list(models) == [
        *("opt/sealift", "opt/sealift/releases", release, f"{release}/models", f"{release}/models/tiny"),
        *(f"{release}/models/tiny/config.json", f"{release}/models/tiny/model.safetensors"),
    ]
    assert f"{release}/models" not in rest
    assert {f"{release}/{name}" for name in FILES if not name.startswith("models/")} <= rest.keys()
    assert {"opt/sealift/kit/runtime.pyz", "opt/sealift/kit/allowed_signers", "opt/sealift/var"} <= rest.keys()
    assert [name for name in rest if "/store" in name or "/var/" in name or name.endswith("uv_cache.json")] == []
    assert "opt" not in rest  # the base has it


def test_members_tell_nothing_of_the_builder(bundle: Path, base: Path, key: Key) -> None:
    image = make(order(bundle, base, key))
    release = f"opt/sealift/releases/1.0.0-{image.manifest_digest[:12]}"
    for _, layer in image.layers:
        for member in members_of(image.output, layer.digest).values():
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", CREATED)
            expected = 0o777 if member.issym() else 0o444 if member.isreg() else 0o755
            expected = {"opt/sealift/var": 0o1777, f"{release}/bootstrap/install.sh": 0o555}.get(member.name, expected)
            assert member.mode == expected, member.name
            assert set(member.pax_headers) <= {"path", "linkpath"}
    path = image.output / "blobs" / image.layers[1][1].digest.replace(":", "/")
    with tarfile.open(path) as archive:
        receipt = json.loads(content_of(archive, f"{release}/receipt.json"))
        record = content_of(archive, f"{release}/venv/lib/six-1.0.dist-info/RECORD")
    assert receipt["installed"] == "2026-01-02T03:04:05Z"
    assert {tuple(values[1:]) for values in receipt["stats"].values()} == {(CREATED * 10**9, 0)}
    assert receipt["stats"]["venv/lib/six-1.0.dist-info/RECORD"][0] == len(record)
    assert "venv/lib/six-1.0.dist-info/uv_cache.json" not in receipt["stats"]
    assert record == b"six.py,sha256=x,1\n"


def test_config_is_the_base_s_and_the_recipe_s(bundle: Path, base: Path, key: Key) -> None:
    image = make(order(bundle, base, key))
    manifest = blob(image.output, image.digest)
    config = blob(image.output, manifest["config"]["digest"])
    (before,) = json.loads((base / "index.json").read_bytes())["manifests"]
    assert manifest["annotations"] == {"org.opencontainers.image.base.digest": before["digest"]}
    assert manifest["layers"][0] == blob(base, before["digest"])["layers"][0]
    recipe = load_recipe()
    assert config["config"] == {
        "Entrypoint": list(recipe.entrypoint),
        "Env": ["PATH=/usr/bin", "PREFIX=/opt/sealift", "PORT=8000"],
        "ExposedPorts": {"8000/tcp": {}},
        "Healthcheck": dict(recipe.health),
        "Labels": {
            "site": "x",
            "io.sealift.manifest.digest": image.manifest_digest,
            "org.opencontainers.image.created": "2026-01-02T03:04:05Z",
            "org.opencontainers.image.title": "demo",
            "org.opencontainers.image.version": "1.0.0",
        },
        "User": "10001",
        "WorkingDir": "/srv",
    }
    stem = f"bundler image demo-1.0.0-{HOST_TARGET.label}"
    assert config["history"] == [
        {"created_by": "site"},
        {"comment": "models", "created": "2026-01-02T03:04:05Z", "created_by": stem},
        {"comment": "release", "created": "2026-01-02T03:04:05Z", "created_by": stem},
    ]
    assert config["rootfs"]["diff_ids"][1:] == [layer.digest for _, layer in image.layers]
    assert (config["author"], config["created"]) == ("site", "2026-01-02T03:04:05Z")


def test_recipe_is_dockerfile_offline() -> None:
    recipe = load_recipe()
    text = (ROOT / "Dockerfile.offline").read_text()
    assert recipe.entrypoint[:2] == ("/bin/sh", "-c")
    assert recipe.entrypoint[3] == "sealift"
    assert f"ENTRYPOINT {json.dumps(list(recipe.entrypoint))}" in text
    seconds = 10**9
    words = recipe.health["Test"]
    assert isinstance(words, list)
    assert words[:3] == ["CMD", "/bin/sh", "-c"]
    assert {key: value for key, value in recipe.health.items() if key != "Test"} == {
        "Interval": 30 * seconds,
        "Timeout": 5 * seconds,
        "StartPeriod": 300 * seconds,
    }
    assert (recipe.environment, recipe.user, recipe.port) == ({"PREFIX": "/opt/sealift", "PORT": "8000"}, "10001", 8000)


def test_another_prefix_brings_the_folders_above_it(bundle: Path, base: Path, key: Key) -> None:
    install = PretendInstall()
    image = make(order(bundle, base, key, prefix="/srv/ai/rag", tag="registry.site:5000/rag:2"), install)
    for _, layer in image.layers:
        assert list(members_of(image.output, layer.digest))[:3] == ["srv", "srv/ai", "srv/ai/rag"]
    (task,) = install.tasks
    assert (task.prefix, task.digest, task.search_path) == ("/srv/ai/rag", image.manifest_digest, "/usr/bin")
    assert image.tag == "registry.site:5000/rag:2"


def test_without_models_there_is_one_layer(tmp_path: Path, base: Path, key: Key) -> None:
    files = {name: data for name, data in FILES.items() if not name.startswith("models/")}
    bundle = make_bundle(tmp_path, files, key=key, target=HOST_TARGET)
    assert [title for title, _ in make(order(bundle, base, key)).layers] == ["release"]


def refused(given: ImageOrder, install: Installer | None = None) -> SealiftError:
    """Return how an order is refused; nothing was left of it."""
    before = sorted(given.output.parent.iterdir())
    with pytest.raises(SealiftError) as caught:
        make(given, install)
    assert sorted(given.output.parent.iterdir()) == before
    return caught.value


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tag": "a b"}, "'a b': can't be an image's tag"),
        ({"tag": "-a"}, "'-a': can't be an image's tag"),
        ({"prefix": "opt/x"}, "'opt/x': can't be a prefix in an image"),
        ({"prefix": "/opt/../x"}, "'/opt/../x': can't be a prefix in an image"),
        ({"prefix": "/"}, "'/': can't be a prefix in an image"),
        ({"prefix": "/usr/bin"}, "/usr/bin: the base image has something there"),
        ({"prefix": "/bin/x"}, "/bin/x: the base image has a link or a file on the way there"),
        ({"prefix": "/usr/bin/sh"}, "/usr/bin/sh: the base image has a link or a file on the way there"),
    ],
)
def test_what_cannot_be_ordered(bundle: Path, base: Path, key: Key, more: dict[str, str], message: str) -> None:
    error = refused(order(bundle, base, key, **more))
    assert (type(error), error.message) == (UsageError, message)


def test_what_is_there_is_not_replaced(bundle: Path, base: Path, key: Key) -> None:
    (bundle.parent / "image").mkdir()
    make(order(bundle, base, key))  # an empty folder is as good as none
    error = refused(order(bundle, base, key))
    assert (type(error), error.message) == (UsageError, f"{bundle.parent / 'image'}: is there already")


def test_a_bundle_of_somebody_else_is_refused(bundle: Path, base: Path, key: Key, second_key: Key) -> None:
    error = refused(order(bundle, base, key, trust=second_key.allowed_signers.read_text()))
    assert isinstance(error, TrustError)


def test_a_damaged_bundle_is_refused_before_anything_runs(bundle: Path, base: Path, key: Key) -> None:
    data = bytearray(bundle.read_bytes())
    data[data.index(b"the verifier")] ^= 1
    bundle.write_bytes(data)
    install = PretendInstall()
    error = refused(order(bundle, base, key), install)
    assert isinstance(error, IntegrityError)
    assert "bootstrap/runtime.pyz" in error.message
    assert install.tasks == []


@pytest.mark.parametrize(
    "platform", ["riscv64-manylinux_2_28", HOST_TARGET.platform.partition("-")[0] + "-apple-darwin"]
)
def test_a_target_that_cannot_run_here_is_for_another_host(tmp_path: Path, base: Path, key: Key, platform: str) -> None:
    target = Target(platform=platform, python="3.11", accelerator="cpu")
    error = refused(order(make_bundle(tmp_path, FILES, key=key, target=target), base, key))
    assert (type(error), error.exit_code, error.hint) == (HostError, 6, OTHER_WAY)
    expected = (
        f"the bundle is for {platform}, this host is {HOST_TARGET.platform}: it can't be installed here for an image"
    )
    assert error.message == expected


def test_a_base_for_another_platform_is_refused(bundle: Path, key: Key, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "other", architecture="riscv64")
    error = refused(order(bundle, base, key))
    assert isinstance(error, UsageError)
    assert "is an image for linux/riscv64, the bundle is for" in error.message


def test_a_hostile_base_is_refused(bundle: Path, key: Key, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "hostile", SYSTEM_LAYER, (Member(name="../../x", content=b"x"),))
    error = refused(order(bundle, base, key))
    assert (type(error), error.message) == (IntegrityError, "'../../x': a member of a layer leads out of the image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models/tiny/config.json": b"[]\n"}, "models/tiny/config.json: expected sha256"),
        ({"models/tiny/config.json": None}, "models/tiny/config.json: missing"),
    ],
    ids=["changed", "missing"],
)
def test_what_the_base_s_python_changed_is_found(
    bundle: Path, base: Path, key: Key, change: dict[str, bytes | None], message: str
) -> None:
    error = refused(order(bundle, base, key), PretendInstall(change))
    assert isinstance(error, IntegrityError)
    assert message in error.message


class LinkedElsewhere:
    """An install by a hostile base: ``current`` leads out of the image."""

    def __call__(self, root: Path, task: Inside) -> None:
        place = root / task.prefix[1:]
        place.mkdir(parents=True)
        (place / "releases").symlink_to(task.kit)
        (place / "current").symlink_to("releases/x")
        (task.kit / "x").mkdir()


def test_links_of_a_hostile_base_are_not_followed(bundle: Path, base: Path, key: Key) -> None:
    error = refused(order(bundle, base, key), LinkedElsewhere())
    expected = "/opt/sealift/current: doesn't lead to a release after the install in the base image"
    assert (type(error), error.message) == (IntegrityError, expected)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is asked for first")
def test_a_base_without_a_shell_is_refused(bundle: Path, key: Key, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "bare", (Member(name="opt"),))
    error = refused(order(bundle, base, key), install_inside)
    assert (type(error), error.message) == (UsageError, "the base image has no /bin/sh, which installs and launches")


def test_the_command_line_refuses_with_its_exit_code(bundle: Path, base: Path) -> None:
    words = ["--base", str(base), "--output", str(bundle.parent / "image"), "--trust", "nothing"]
    done = subprocess.run(
        [sys.executable, "-m", "bundler.cli", "image", str(bundle), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nothing: no such allowed_signers file\n")
