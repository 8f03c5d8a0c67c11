"""Bundles for machines unlike this one: locked, proven complete, built, and verified here; never installed here."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

from bundler.packages.accelerator import TORCH_FAMILY
from bundler.packages.pipconfig import PipConfig, load_pip_config
from bundler.packages.resolver import UvResolver
from bundler.packages.wheeltags import tag_rank
from bundler.spec import IndexSpec
from bundler.specfile import load_spec
from manifests.errors import SourceError, SpecError
from manifests.manifest import Target
from tests.factories import Key
from tests.factories_cli import Builder
from tests.factories_index import NVIDIA, by_project, make_torch_stand_ins, simple_index
from tests.factories_wheels import make_wheel

PLATFORMS: Final = {
    "x86_64-manylinux_2_28": ("2.13.0+cpu", "manylinux_2_28_x86_64", "lib-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"),
    "aarch64-manylinux_2_28": (
        "2.13.0+cpu",
        "manylinux_2_28_aarch64",
        "lib-1.0-cp311-cp311-manylinux_2_17_aarch64.whl",
    ),
    "aarch64-apple-darwin": ("2.13.0", "macosx_14_0_arm64", "lib-1.0-cp311-cp311-macosx_13_0_arm64.whl"),
    "x86_64-pc-windows-msvc": ("2.13.0", "win_amd64", "lib-1.0-cp311-cp311-win_amd64.whl"),
}
SPEC: Final = """
[bundle]
name = "demo"
version = "1.0.0"
[target]
platform = "{platform}"
python = "3.11"
accelerator = "{accelerator}"
[packages]
requirements = ["torch", "lib"]
{more}
"""


def write_spec(folder: Path, platform: str = "x86_64-manylinux_2_28", accelerator: str = "cpu", more: str = "") -> Path:
    path = folder / "demo.toml"
    path.write_text(SPEC.format(platform=platform, accelerator=accelerator, more=more))
    return path


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torch-shaped stand-ins, a library with a wheel for every platform, and stand-ins of uv."""
    folder = tmp_path_factory.mktemp("targets")
    make_torch_stand_ins(folder)
    links = folder / "links"
    links.mkdir()
    for path in [*(folder / "public").glob("*.whl"), *(folder / "cpu").glob("*+cpu*manylinux*.whl")]:
        if not path.name.startswith("torch-2.13.0-") or "linux" not in path.name:
            path.rename(links / path.name)
    for *_, filename in PLATFORMS.values():
        make_wheel(links, "lib", "1.0", tag=filename.removeprefix("lib-1.0-").removesuffix(".whl"))
    make_wheel(links, "lib", "1.0")
    make_wheel(links, "quick", "1.0")
    for platform in ("manylinux_2_17_x86_64", "manylinux_2_17_aarch64", "macosx_11_0_arm64", "win_amd64"):
        make_wheel(links, "uv", version("uv"), tag=f"py3-none-{platform}")
    return links


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_is_locked_built_and_verified_here(links: Path, tmp_path: Path, platform: str, key: Key) -> None:
    """One wheel of each package travels, the digests of the others stay in the lock."""
    builder = Builder(folder=tmp_path, links=(links,))
    make_wheel(tmp_path, "tool", "1.0", requires=['quick; extra == "fast"'], headers=["Provides-Extra: fast"])
    app = '[[app]]\nsource = "wheel:tool-1.0-py3-none-any.whl"\nextras = ["fast"]'
    write_spec(tmp_path, platform, more=app)
    builder.json("lock", "demo.toml")
    lock = json.loads((tmp_path / "demo.lock").read_text())
    torch, tag, lib = PLATFORMS[platform]
    windows = ["wheels/winlib-1.0-py3-none-any.whl"] if "windows" in platform else []
    assert [file["path"] for file in lock["wheels"]] == [
        f"wheels/{lib}",
        "wheels/quick-1.0-py3-none-any.whl",
        "wheels/tinylib-1.0-py3-none-any.whl",
        "wheels/tool-1.0-py3-none-any.whl",
        f"wheels/torch-{torch}-cp311-cp311-{tag}.whl",
        *windows,
    ]
    assert list(lock["alternatives"]) == ["lib==1.0"]
    assert list(lock["alternatives"]["lib==1.0"]) == ["lib-1.0-py3-none-any.whl"]
    document = builder.json("check", "demo.toml", "--lock")
    assert (document["wheels"], document["unneeded"]) == (len(lock["wheels"]), [])
    built = builder.json("build", "demo.toml", "--key", key.path, "--output", tmp_path / "out", "--no-rehearsal")
    assert_verifies(Path(built["bundle"]), Path(built["kit"]))


def assert_verifies(bundle: Path, kit: Path) -> None:
    """Require that the kit's own verifier accepts a bundle; it needs no more than this host's Python."""
    words = [sys.executable, "-I", kit / "runtime.pyz", "verify", bundle, "--trust", kit / "allowed_signers"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, cwd=bundle.parent)
    assert done.returncode == 0, done.stderr


def test_cuda_bundle_is_locked_built_and_verified_here(tmp_path: Path, key: Key) -> None:
    """With torch from an index of its own, and all else from another one."""
    make_torch_stand_ins(tmp_path)
    for name, number in (("lib", "1.0"), ("uv", version("uv"))):
        make_wheel(tmp_path / "public", name, number)
    with simple_index(by_project(tmp_path / "public")) as public, simple_index(by_project(tmp_path / "cu126")) as torch:
        binding = f'[[packages.index]]\nurl = "{torch.url}"\npackages = ["torch"]\n[policy]\nmax-size = "10 MB"'
        write_spec(tmp_path, accelerator="cuda-12.6", more=binding)
        builder = Builder(folder=tmp_path, variables={"PIP_NO_INDEX": "", "PIP_INDEX_URL": public.url})
        done = builder.run("lock", "demo.toml")
        assert done.returncode == 0, done.stderr
        assert "... 10 wheels, " in done.stderr
    filename = "torch-2.13.0+cu126-cp311-cp311-manylinux_2_28_x86_64.whl"
    lock = json.loads((tmp_path / "demo.lock").read_text())
    found = next(file for file in lock["wheels"] if file["path"] == f"wheels/{filename}")
    assert found["origin"] == "pkg:pypi/torch@2.13.0%2Bcu126"
    assert found["source"] == f"index {torch.url.removesuffix('simple')}files/{filename.replace('+', '%2B')}"
    assert sorted(file["path"] for file in lock["wheels"] if "nvidia" in file["path"]) == sorted(
        f"wheels/nvidia_{name.replace('-', '_')}_cu12-12.1-py3-none-manylinux_2_27_x86_64.whl" for name in NVIDIA
    )
    built = builder.run("build", "demo.toml", "--key", key.path, "--output", tmp_path / "out")
    assert built.returncode == 0, built.stderr
    assert "NOT rehearsed: the bundle is for cuda-12.6, this host is rehearsed on cpu only" in built.stderr
    (bundle,) = (tmp_path / "out").glob("*.bundle.tar")
    assert_verifies(bundle, bundle.with_name(bundle.name.replace(".bundle.tar", ".kit")))


@pytest.fixture(scope="module")
def windows(links: Path, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A builder with a lock for Windows; never change it."""
    builder = Builder(folder=tmp_path_factory.mktemp("windows"), links=(links,))
    write_spec(builder.folder, "x86_64-pc-windows-msvc")
    builder.json("lock", "demo.toml")
    return builder


def test_incomplete_lock_is_refused_before_anything_is_built(windows: Builder, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(windows.folder, folder)
    builder = replace(windows, folder=folder)
    path = folder / "demo.lock"
    lock = json.loads(path.read_text())
    lock["wheels"] = [file for file in lock["wheels"] if "winlib" not in file["path"]]
    path.write_text(json.dumps(lock))
    expected = (
        "error: the wheels for x86_64-pc-windows-msvc-cp311-cpu are not complete:\n"
        "  torch 2.13.0 requires winlib>=1: there is no wheel of winlib; add 'winlib>=1'\n"
        "hint: name what is missing in [packages] requirements, then: bundler lock SPEC --upgrade\n"
    )
    assert builder.refused("build", "demo.toml", "--unsigned", "--output", "out") == (3, expected)
    assert builder.refused("check", "demo.toml", "--lock") == (3, expected)
    assert not (folder / "out").exists()


def test_windows_bundle_is_built_and_verified_here(windows: Builder, tmp_path: Path, key: Key) -> None:
    done = windows.run("build", "demo.toml", "--key", key.path, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NOT rehearsed: the bundle is for x86_64-pc-windows-msvc, this host is " in done.stderr
    bundle = tmp_path / "demo-1.0.0-x86_64-pc-windows-msvc-cp311-cpu.bundle.tar"
    assert_verifies(bundle, bundle.with_name("demo-1.0.0-x86_64-pc-windows-msvc-cp311-cpu.kit"))


def test_budget_is_checked_before_anything_is_fetched(tmp_path: Path) -> None:
    for name in ("torch", "lib"):
        make_wheel(tmp_path / "index", name, "1.0+cpu" if name == "torch" else "1.0")
    with simple_index(by_project(tmp_path / "index")) as index:
        variables = {"PIP_NO_INDEX": "", "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0"}
        binding = f'[[packages.index]]\nurl = "{index.url}"\npackages = ["torch"]\n[policy]\nmax-size = "1 kB"'
        write_spec(tmp_path, more=binding)
        code, words = Builder(folder=tmp_path, variables=variables).refused("lock", "demo.toml")
    assert (code, index.downloads) == (10, set())
    assert words.startswith("error: the wheels have 1.8 kB, policy.max-size allows 1.0 kB; largest: ")
    assert words.endswith("; nothing was fetched\nhint: raise [policy] max-size, or leave something out\n")


@pytest.mark.parametrize(
    ("platform", "accelerator", "message"),
    [
        ("x86_64-musllinux_1_2", "cpu", "musl (Alpine) is left out, since PyTorch has no wheels for it"),
        ("x86_64-manylinux_2_28", "mps", "target.accelerator: x86_64-manylinux_2_28 has no mps"),
        ("x86_64-pc-windows-msvc", "mps", "target.accelerator: x86_64-pc-windows-msvc has no mps"),
        ("aarch64-apple-darwin", "cuda-12.6", "target.accelerator: aarch64-apple-darwin has no cuda-12.6"),
    ],
)
def test_target_that_does_not_exist(tmp_path: Path, platform: str, accelerator: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write_spec(tmp_path, platform, accelerator))
    assert message in caught.value.message


def test_macos_deployment_target_is_the_bundles(tmp_path: Path) -> None:
    """A wheel for macOS 15 isn't taken, one for macOS 14 is, although this host is no Mac."""
    mac = Target(platform="aarch64-apple-darwin", python="3.11", accelerator="mps")
    resolver = UvResolver(config=PipConfig(no_index=True, find_links=(str(tmp_path),)))
    make_wheel(tmp_path, "lib", "2.0", tag="cp311-cp311-macosx_15_0_arm64")
    make_wheel(tmp_path, "lib", "1.0", tag="cp311-cp311-macosx_14_0_arm64")
    make_wheel(tmp_path, "lib", "1.0", tag="cp311-cp311-macosx_11_0_arm64")
    (pin,) = resolver.resolve(["lib"], mac, {}).pins
    assert pin.filename == "lib-1.0-cp311-cp311-macosx_14_0_arm64.whl"
    assert list(pin.alternatives) == ["lib-1.0-cp311-cp311-macosx_11_0_arm64.whl"]
    with pytest.raises(SourceError, match="no wheel for aarch64-apple-darwin-cp311-mps"):
        resolver.resolve(["lib==2.0"], mac, {})


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_real_packages_beside_torch_shaped_stand_ins(tmp_path: Path, platform: str, python: str) -> None:
    """NumPy, pydantic-core and tokenizers of the real index, resolved and not fetched; torch from the loopback."""
    make_torch_stand_ins(tmp_path)
    make_wheel(tmp_path / "cpu", "tinylib", "1.0")
    make_wheel(tmp_path / "cpu", "winlib", "1.0")
    target = Target(platform=platform, python=python, accelerator="cpu")
    with simple_index(by_project(tmp_path / "cpu")) as index:
        bound = IndexSpec(url=index.url, packages=("torch", "tinylib", "winlib"))
        resolver = UvResolver(config=load_pip_config(), indexes=(bound,))
        wanted = ["torch", "numpy", "pydantic-core", "tokenizers"]
        pins = {pin.name: pin for pin in resolver.resolve(wanted, target, {}).pins}
    assert set(wanted) <= pins.keys()
    for name in ("numpy", "pydantic-core"):
        assert f"-cp{python.replace('.', '')}-" in pins[name].filename
    for pin in pins.values():
        best = tag_rank(pin.filename, target)
        assert best is not None, pin.filename
        others = [tag_rank(other, target) for other in pin.alternatives]
        assert all(other is not None and other >= best for other in others)
        assert pin.size > 0 or pin.is_local
    assert {pin.name for pin in pins.values() if pin.index} == {*TORCH_FAMILY, "tinylib", "winlib"} & pins.keys()
