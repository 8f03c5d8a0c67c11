"""The RAGTrace stack with its real wheels from the index that pip knows, and FlagEmbedding 1.3.5 built from source."""

import json
from pathlib import Path
from typing import Final

import pytest

from bundler.lock import Lock
from bundler.packages.pipconfig import load_pip_config
from bundler.packages.resolver import UvResolver
from bundler.relock import lock_spec
from bundler.specfile import check_spec, load_spec
from bundler.store import Store
from tests.factories_models import make_hyperclovax, make_xlmr

pytestmark = [pytest.mark.slow, pytest.mark.models]
SHIPPED: Final = Path(__file__).parents[2] / "manifests" / "bundles" / "ragtrace.toml"
MODELS: Final = """
[[model]]
name = "bge-m3"
source = "dir:bge-m3"
adapter = "bge-m3"
[[model]]
name = "hcx"
source = "dir:hcx"
adapter = "hcx"
"""
ALONE: Final = """
[bundle]
name = "alone"
version = "1.0"
[target]
platform = "x86_64-manylinux_2_28"
python = "3.11"
[packages]
requirements = ["FlagEmbedding==1.3.5"]
build-from-source = ["flagembedding"]
"""


def lock(spec_path: Path, store: Store, previous: Lock | None = None) -> Lock:
    spec, config = load_spec(spec_path), load_pip_config()
    check_spec(spec)
    return lock_spec(spec, store, UvResolver(config=config), config, previous=previous)


def test_the_real_stack_is_locked_and_proven_complete(tmp_path: Path) -> None:
    make_xlmr(tmp_path / "bge-m3")
    make_hyperclovax(tmp_path / "hcx")
    (tmp_path / "RAGTrace").mkdir()
    (tmp_path / "RAGTrace" / "main.py").write_text("print('RAGTrace')\n")
    path = tmp_path / "site.toml"
    path.write_text(f"extends = {json.dumps(str(SHIPPED))}\n{MODELS}")
    made = lock(path, Store(tmp_path / "cache"))
    names = {wheel.path.removeprefix("wheels/").partition("-")[0].lower() for wheel in made.wheels}
    wanted = {"torch", "transformers", "flagembedding", "sentence_transformers", "langchain_core"}
    assert wanted <= names
    assert not {name for name in names if name.startswith(("nvidia", "cuda"))}
    assert made.builds == (), "the newest FlagEmbedding has a wheel"


def test_flagembedding_1_3_5_is_built_once_and_always_the_same(tmp_path: Path) -> None:
    path = tmp_path / "alone.toml"
    path.write_text(ALONE)
    first = lock(path, Store(tmp_path / "cache"))
    (built,) = first.builds
    assert (built.source, built.wheel) == ("FlagEmbedding-1.3.5.tar.gz", "flagembedding-1.3.5-py3-none-any.whl")
    assert built.source_sha256 == "a0714cb8dd03f38e74b84530684c47ad8e0442ab1f4cbb7b0bcd4017dafb9f9c"
    assert [requirement.partition("==")[0] for requirement in built.requirements] == ["setuptools"]
    assert lock(path, Store(tmp_path / "cache"), first) == first
    again = Store(tmp_path / "cache")
    again.drop(built.wheel_sha256)
    assert lock(path, again, first) == first
