"""The kit for RAGTrace: made for its layout alone, a patch that applies to the files that travel, or what to do."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.ragtrace import is_ragtrace, ragtrace_kit
from bundler.store import Store
from runtime.adapters.prompts import rag_question
from tests.factories import tree_of
from tests.factories_closed import program
from tests.factories_ragtrace import SOURCES, integrate, locked, make_kit, subject, write_checkout

BOTH: Final = {"hcx": "hcx", "m3": "bge-m3"}
ASK: Final = """
import json
from src.config import EMBEDDING_DISPLAY_NAMES, LLM_DISPLAY_NAMES, SUPPORTED_EMBEDDING_TYPES, SUPPORTED_LLM_TYPES
from src.container.configuration_container import ConfigurationContainer
from src.container.providers.llm_provider_factory import LlmProviderFactory
container = ConfigurationContainer()
names = [LLM_DISPLAY_NAMES["hcx_offline"], EMBEDDING_DISPLAY_NAMES["bge_m3_offline"]]
settings = [container.get_llm_config("hcx_offline"), container.get_embedding_config("bge_m3_offline")]
before = LlmProviderFactory(container).create_provider("cloud")
print(json.dumps([SUPPORTED_LLM_TYPES, SUPPORTED_EMBEDDING_TYPES, names, settings, before]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of RAGTrace's shape."""
    return write_checkout(tmp_path / "checkout")


def in_checkout(checkout: Path, code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=checkout,
        env={"PATH": os.defpath, "PYTHONPATH": str(checkout), "PYTHONUTF8": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kit_is_whole_and_the_bundles_own(tmp_path: Path, checkout: Path) -> None:
    kit = make_kit(tmp_path, checkout, BOTH)
    files = tree_of(kit)
    assert sorted(files) == [
        ".env.offline",
        "INTEGRATION.md",
        "ragtrace.patch",
        "src/infrastructure/embedding/sealift_bge_m3_adapter.py",
        "src/infrastructure/llm/sealift_hcx_adapter.py",
        "src/infrastructure/sealift_client.py",
    ]
    lines = files[".env.offline"].decode().splitlines()
    assert {
        "GEMINI_API_KEY=offline-unused",
        "DEFAULT_LLM=hcx_offline",
        "DEFAULT_EMBEDDING=bge_m3_offline",
        "SEALIFT_MODE=http",
        "HCX_MODEL_PATH=${PREFIX}/current/models/hcx",
        "BGE_M3_MODEL_PATH=${PREFIX}/current/models/m3",
        "HF_HUB_OFFLINE=1",
    } <= set(lines)
    text = files["INTEGRATION.md"].decode()
    assert 'patch -p1 --dry-run < "$KIT/ragtrace.patch"' in text
    assert "KIT=$PREFIX/current/config/ragtrace-kit\n" in text
    assert "**Over HTTP (recommended).**" in text
    assert "**In-process.**" in text
    assert "by hand" not in text
    for name, data in files.items():
        if name.endswith(".py"):
            ast.parse(data)
    adapter = files["src/infrastructure/llm/sealift_hcx_adapter.py"].decode()
    assert 'MODEL = "hcx"\nLABEL = "HCX-hcx"' in adapter


def test_the_patch_opens_the_closed_factories(tmp_path: Path, checkout: Path) -> None:
    kit = make_kit(tmp_path, checkout, BOTH)
    said = integrate(kit, checkout)
    assert said.splitlines() == [
        "patching file src/config.py",
        "patching file src/container/configuration_container.py",
        "patching file src/container/providers/llm_provider_factory.py",
        "patching file src/container/providers/embedding_provider_factory.py",
    ]
    llm, embedding, names, settings, before = json.loads(in_checkout(checkout, ASK, HCX_MODEL_PATH="/m/hcx"))
    assert (llm, embedding) == (["cloud", "other", "hcx_offline"], ["cloud", "other", "bge_m3_offline"])
    assert names == ["hcx (Sealift)", "m3 (Sealift)"]
    shared = {"mode": "http", "base_url": "http://127.0.0.1:8000/v1", "api_key": None}
    assert settings == [{**shared, "model_path": "/m/hcx"}, {**shared, "model_path": None}]
    assert before == ["cloud", {"api_key": "구름"}]
    config = (checkout / "src/config.py").read_text()
    assert config.count("BGE_M3_MODEL_PATH") == 1, "a field that is there already isn't added again"


def test_git_applies_the_patch_too(tmp_path: Path, checkout: Path) -> None:
    kit = make_kit(tmp_path, checkout, BOTH)
    done = subprocess.run(
        [program("git"), "apply", "--check", f"{kit}/ragtrace.patch"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_bundle_makes_the_same_kit(tmp_path: Path, checkout: Path) -> None:
    first, second = make_kit(tmp_path / "1", checkout, BOTH), make_kit(tmp_path / "2", checkout, BOTH)
    assert tree_of(first) == tree_of(second)


@pytest.mark.parametrize(
    ("adapters", "missing", "left"),
    [
        ({"seed": "causal-lm"}, "bge_m3", "hcx"),
        ({"minilm": "sentence-transformer"}, "hcx", "bge_m3"),
    ],
)
def test_a_bundle_with_one_kind_of_model(
    adapters: dict[str, str], missing: str, left: str, tmp_path: Path, checkout: Path
) -> None:
    kit = make_kit(tmp_path, checkout, adapters)
    assert not [name for name in tree_of(kit) if f"sealift_{missing}" in name]
    everything = b"".join(data for name, data in tree_of(kit).items() if not name.endswith(".py")).decode()
    assert f"{missing}_offline" not in everything
    assert f"{left}_offline" in everything
    (variable,) = re.findall(r"^([A-Z0-9_]+)=\$\{PREFIX\}", everything, re.MULTILINE)
    assert variable == f"{next(iter(adapters)).upper()}_MODEL_PATH"
    integrate(kit, checkout)
    assert variable in (checkout / "src/config.py").read_text()


def test_only_hyperclova_x_is_called_hcx(tmp_path: Path, checkout: Path) -> None:
    kit = make_kit(tmp_path, checkout, {"seed": "causal-lm"})
    text = (kit / "src/infrastructure/llm/sealift_hcx_adapter.py").read_text()
    assert 'MODEL = "seed"\nLABEL = "seed"' in text


@pytest.mark.parametrize(
    ("path", "old", "new", "problem"),
    [
        ("src/config.py", "class Settings:", "class Einstellungen:", "there is no class Settings with fields"),
        (
            "src/config.py",
            "SUPPORTED_LLM_TYPES = [",
            "LLM_TYPES = [",
            "there is no one list or dict SUPPORTED_LLM_TYPES",
        ),
        ("src/config.py", "from typing import Optional", "Optional = list", "Optional isn't imported from typing"),
        (
            "src/container/providers/llm_provider_factory.py",
            "llm_type == ",
            "llm_type != ",
            'create_provider has no chain of llm_type == "..."',
        ),
        ("src/container/configuration_container.py", "class ", "klass ", "it is not Python"),
        ("src/container/configuration_container.py", "\n", "\r\n", "it is missing, or no text with Unix line ends"),
    ],
)
def test_what_is_not_as_expected_is_explained(path: str, old: str, new: str, problem: str, tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "checkout")
    file = checkout / path
    text = file.read_text()
    assert old in text
    file.write_bytes(text.replace(old, new).encode())
    kit = make_kit(tmp_path, checkout, BOTH)
    assert not (kit / "ragtrace.patch").exists()
    text = (kit / "INTEGRATION.md").read_text()
    assert f"\n- `{path}`: {problem}\n" in text
    assert "ragtrace.patch" not in text
    for step in ("in get_llm_config, as the first branch", "in get_embedding_config, as", "after LLM_DISPLAY_NAMES"):
        assert step in text
    assert (
        'if llm_type == "hcx_offline":\n    from src.infrastructure.llm.sealift_hcx_adapter import create_llm' in text
    )


def test_a_missing_file_is_named(tmp_path: Path, checkout: Path) -> None:
    (checkout / "src/config.py").unlink()
    text = (make_kit(tmp_path, checkout, BOTH) / "INTEGRATION.md").read_text()
    assert "- `src/config.py`: it is missing, or no text with Unix line ends\n" in text


@pytest.mark.parametrize("gone", ["ports/llm.py", "infrastructure/llm/", "infrastructure/embedding/"])
def test_other_applications_get_no_kit(gone: str, tmp_path: Path, checkout: Path) -> None:
    store = Store(tmp_path / "cache")
    app = locked(checkout, store)
    assert is_ragtrace(app)
    other = replace(app, files=tuple(file for file in app.files if gone not in file.path))
    assert len(other.files) == len(app.files) - 1
    assert not is_ragtrace(other)
    assert ragtrace_kit((other,), subject(BOTH), store) == {}


def test_no_model_no_kit(tmp_path: Path, checkout: Path) -> None:
    store = Store(tmp_path / "cache")
    assert ragtrace_kit((locked(checkout, store),), subject({}), store) == {}


def test_the_prompt_over_http_is_the_adapters_own(tmp_path: Path, checkout: Path) -> None:
    text = (make_kit(tmp_path, checkout, BOTH) / "src/infrastructure/llm/sealift_hcx_adapter.py").read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(("numbered =", "prompt ="))]
    names: dict[str, object] = {"question": "수도는?", "contexts": ["서울이다", "부산"]}
    exec("\n".join(lines), names)  # noqa: S102 # two lines of our own template
    assert names["prompt"] == rag_question("수도는?", ["서울이다", "부산"])


@pytest.mark.skipif(not os.environ.get("RAGTRACE_CHECKOUT"), reason="RAGTRACE_CHECKOUT names no checkout of RAGTrace")
def test_the_patch_fits_ragtrace_itself(tmp_path: Path) -> None:
    checkout = tmp_path / "ragtrace"
    source = Path(os.environ["RAGTRACE_CHECKOUT"])
    for path in source.glob("src/**/*.py"):
        target = checkout / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    kit = make_kit(tmp_path, checkout, BOTH)
    assert "by hand" not in (kit / "INTEGRATION.md").read_text()
    assert integrate(kit, checkout).count("patching file") == 4
    for name in SOURCES:
        if name.startswith(("src/config", "src/container")):
            assert "offline" in (checkout / name).read_text()
            ast.parse((checkout / name).read_text())
