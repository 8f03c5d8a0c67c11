"""The spec of the whole RAGTrace stack: checked as it is shipped, locked and built with stand-ins."""

import os
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

from bundler.packages.pipconfig import load_pip_config
from bundler.packages.requirements import collect_requirements
from bundler.packages.resolver import UvResolver
from bundler.relock import lock_spec
from bundler.sealing.build import BuildOptions, build_bundle
from bundler.specfile import check_spec, load_spec
from bundler.store import Store
from manifests.errors import SpecError
from manifests.manifest import HostNeeds, parse_manifest
from manifests.medium import open_medium
from manifests.pieces import Silent
from tests.factories_models import make_hyperclovax, make_xlmr
from tests.factories_sdists import make_project, make_sdist
from tests.factories_wheels import make_wheel

SHIPPED: Final = Path(__file__).parents[3] / "manifests" / "bundles" / "ragtrace.toml"
GIB: Final = 1024**3
OVER: Final = """
extends = "{shipped}"
[[model]]
name = "bge-m3"
source = "dir:bge-m3"
adapter = "bge-m3"
settings = {{ batch_size = 12, max_length = 8192, use_fp16 = true }}
[[model]]
name = "hcx"
source = "dir:hcx"
adapter = "hcx"
settings = {{ max_new_tokens = 16, temperature = 0.0 }}
"""
WHEELS: Final = {
    "numpy": "2.3.0",
    "pyyaml": "6.0.2",
    "safetensors": "0.5.0",
    "starlette": "0.47.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.0.0",
    "uvicorn": "0.35.0",
    "sentence-transformers": "5.1.0",
    "langchain-core": "1.0.0",
}

PLATFORM_TAGS: Final = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_14_0_arm64", "win_amd64")
PLATFORMS: Final = (
    ("x86_64-manylinux_2_28", "manylinux_2_28_x86_64", "2.13.0+cpu"),
    ("aarch64-manylinux_2_28", "manylinux_2_28_aarch64", "2.13.0+cpu"),
    ("aarch64-apple-darwin", "macosx_14_0_arm64", "2.13.0"),
    ("x86_64-pc-windows-msvc", "win_amd64", "2.13.0"),
)

pytestmark = pytest.mark.models


def test_the_shipped_spec_is_good_but_for_the_checkout_beside_it() -> None:
    spec = load_spec(SHIPPED)
    with pytest.raises(SpecError) as caught:
        check_spec(spec)
    expected = f"{SHIPPED}: app 'ragtrace': source: {SHIPPED.parent / 'RAGTrace'} is not a folder"
    assert caught.value.message == expected
    names = {text.partition("=")[0].partition(">")[0] for text in collect_requirements(spec).requirements}
    assert {"torch", "transformers", "FlagEmbedding", "sentence-transformers", "langchain-core"} <= names
    assert spec.minimum == HostNeeds(cpu_cores=8, memory=32 * GIB, disk=100 * GIB)
    assert spec.recommended == HostNeeds(cpu_cores=16, memory=64 * GIB, disk=500 * GIB)
    assert [(model.name, model.scheme) for model in spec.models] == [("bge-m3", "hf"), ("hcx", "hf")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a spec that extends the shipped one, tiny models, an application, and an index of wheels.

    The wheels hold nothing but metadata; FlagEmbedding is there as a source distribution alone.
    """
    links = tmp_path / "links"
    for name, number in WHEELS.items():
        requires = ["torch"] if name in {"sentence-transformers", "transformers"} else []
        for tag in PLATFORM_TAGS if name in {"torch", "numpy"} else ("any",):
            # PyTorch's CPU builds for Linux have a local version, those for the others have none.
            found = "2.13.0" if name == "torch" and "linux" not in tag else number
            for python in ("py3",) if tag == "any" else ("cp311", "cp312", "cp313"):
                abi = "none" if tag == "any" else python
                make_wheel(links, name, found, requires=requires, tag=f"{python}-{abi}-{tag}")
    for tag in PLATFORM_TAGS:
        make_wheel(links, "uv", version("uv"), tag=f"py3-none-{tag}")
    project = make_project(tmp_path / "src", "FlagEmbedding", "1.3.5", requires=["transformers", "torch"])
    make_sdist(links, project, "FlagEmbedding", "1.3.5")
    make_xlmr(tmp_path / "bge-m3")
    make_hyperclovax(tmp_path / "hcx")
    (tmp_path / "RAGTrace" / "src").mkdir(parents=True)
    (tmp_path / "RAGTrace" / "src" / "실행.py").write_text("print('RAGTrace')\n", encoding="utf-8")
    (tmp_path / "RAGTrace" / "start.sh").write_text("#!/bin/sh\n")
    (tmp_path / "RAGTrace" / "start.sh").chmod(0o755)
    (tmp_path / "RAGTrace" / ".env").write_text("GEMINI_API_KEY=hunter2\n")
    (tmp_path / "site.toml").write_text(OVER.format(shipped=SHIPPED), encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return tmp_path


def test_the_stack_is_locked_and_built_with_stand_ins(site: Path) -> None:
    spec, store, config = load_spec(site / "site.toml"), Store(site / "cache"), load_pip_config()
    check_spec(spec)
    lock = lock_spec(spec, store, UvResolver(config=config), config)
    names = [wheel.path.removeprefix("wheels/").partition("-")[0] for wheel in lock.wheels]
    assert names == sorted([*(name.replace("-", "_") for name in WHEELS), "flagembedding"])
    assert [(build.source, build.wheel) for build in lock.builds] == [
        ("flagembedding-1.3.5.tar.gz", "flagembedding-1.3.5-py3-none-any.whl")
    ]
    assert lock.installer.path.startswith(f"bootstrap/uv-{version('uv')}-")
    options = BuildOptions(output=site / "out", signer=None, rehearse=False)
    built = build_bundle(spec, lock, store, options, progress=lambda _: nullcontext(Silent()), report=lambda _: None)
    with open_medium(built.bundle) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
    modes = {entry.path: entry.mode for entry in manifest.files}
    assert {path: mode for path, mode in modes.items() if path.startswith("app/")} == {
        "app/ragtrace/src/실행.py": 0o644,
        "app/ragtrace/start.sh": 0o755,
    }
    assert {"config/bge_m3.yaml", "config/hcx.yaml", "config/offline.env", "config/sealift.service"} <= modes.keys()
    assert [(model.name, model.adapter) for model in manifest.models] == [("bge-m3", "bge-m3"), ("hcx", "hcx")]
    assert b"hunter2" not in built.bundle.read_bytes()
    assert b"\nGEMINI_API_KEY=offline-unused\n" in built.bundle.read_bytes()
    assert b"\nLOG_FILE=${PREFIX}/var/logs/ragtrace.log\n" in built.bundle.read_bytes()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("platform", "tag", "torch"), PLATFORMS, ids=[platform for platform, _, _ in PLATFORMS])
def test_the_stack_is_locked_for_every_target(site: Path, platform: str, tag: str, torch: str, python: str) -> None:
    own = site / "own.toml"
    own.write_text(f'extends = "site.toml"\n[target]\npython = "{python}"\n', encoding="utf-8")
    spec, store, config = load_spec(own, platform=platform), Store(site / "cache"), load_pip_config()
    lock = lock_spec(spec, store, UvResolver(config=config), config)
    names = [wheel.path.removeprefix("wheels/") for wheel in lock.wheels]
    abi = f"cp{python.replace('.', '')}"
    assert f"torch-{torch}-{abi}-{abi}-{tag}.whl" in names
    assert f"numpy-{WHEELS['numpy']}-{abi}-{abi}-{tag}.whl" in names
    assert lock.installer.path == f"bootstrap/uv-{version('uv')}-py3-none-{tag}.whl"
    assert len(names) == len(WHEELS) + 1
    assert lock.target.label == f"{platform}-{abi}-cpu"
