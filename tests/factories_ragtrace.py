"""An application of RAGTrace's shape in our own words: its folders, closed factories and settings, and nothing else."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bundler.contents.ragtrace import ragtrace_kit
from bundler.contents.render import Subject
from bundler.lock import LockedApp, LockedFile
from bundler.store import Store
from manifests.canonical import Json
from manifests.manifest import AppEntry, ModelEntry
from tests.factories import TARGET, tree_of
from tests.factories_closed import program

Settings = Mapping[str, Mapping[str, Json]]
"""Model name to its settings."""

CHAIN: Final = """\
        if {variable} == "cloud":
            {cloud}
        elif {variable} == "other":
            {other}
        else:
            raise ValueError({variable})
"""
FACTORY: Final = """\
from src.config import SUPPORTED_{upper}_TYPES


class {name}ProviderFactory:
    def __init__(self, container):
        self._container = container

    def create_provider(self, {kind}_type: str):
        \"\"\"만든다.\"\"\"
        if {kind}_type not in SUPPORTED_{upper}_TYPES:
            raise ValueError({kind}_type)
        config = self._container.get_{kind}_config({kind}_type)
{chain}
        return instance
"""


def _chain(variable: str, cloud: str, other: str) -> str:
    return CHAIN.format(variable=variable, cloud=cloud, other=other)


def _factory(kind: str, name: str) -> str:
    chain = _chain(f"{kind}_type", 'instance = ("cloud", config)', 'instance = ("other", config)')
    return FACTORY.format(kind=kind, upper=kind.upper(), name=name, chain=chain)


SOURCES: Final = {
    "src/application/ports/llm.py": """\
from abc import ABC, abstractmethod


class LlmPort(ABC):
    @abstractmethod
    def generate_answer(self, question, contexts): ...

    @abstractmethod
    def get_llm(self): ...
""",
    "src/infrastructure/llm/cloud_adapter.py": "",
    "src/infrastructure/embedding/cloud_adapter.py": "",
    "src/config.py": """\
import os
from typing import Optional


class Settings:
    GEMINI_API_KEY: str = "구름"
    BGE_M3_MODEL_PATH: Optional[str] = None

    def is_custom(self):
        return False


settings = Settings()
for name in Settings.__annotations__:
    setattr(settings, name, os.environ.get(name) or getattr(settings, name))

SUPPORTED_LLM_TYPES = ["cloud", "other"]
SUPPORTED_EMBEDDING_TYPES = [
    "cloud",
    "other",
]
LLM_DISPLAY_NAMES = {
    "cloud": "Cloud",
}
EMBEDDING_DISPLAY_NAMES = {"cloud": "Cloud"}""",  # no line end, as RAGTrace's own files have none
    "src/container/configuration_container.py": (
        "from src.config import settings\n\n\nclass ConfigurationContainer:\n"
        "    def __init__(self):\n        self.config = settings\n\n"
        "    def get_llm_config(self, llm_type: str) -> dict:\n"
        + _chain("llm_type", 'return {"api_key": self.config.GEMINI_API_KEY}', "return {}")
        + "\n    def get_embedding_config(self, embedding_type: str) -> dict:\n"
        + _chain("embedding_type", 'return {"api_key": self.config.GEMINI_API_KEY}', "return {}")
    ),
    "src/container/providers/llm_provider_factory.py": _factory("llm", "Llm"),
    "src/container/providers/embedding_provider_factory.py": _factory("embedding", "Embedding"),
}


def write_checkout(folder: Path) -> Path:
    """Write the sources below ``folder``."""
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def locked(folder: Path, store: Store, name: str = "ragtrace") -> LockedApp:
    """Return the folder's files as an application in a lock."""
    files = []
    for path in sorted(tree_of(folder)):
        digest = store.add_file(folder / path)
        files.append(LockedFile(path=f"app/{name}/{path}", size=digest.size, sha256=digest.sha256))
    return LockedApp(entry=AppEntry(name=name, path=f"app/{name}", origin=f"pkg:generic/{name}"), files=tuple(files))


def subject(adapters: Mapping[str, str], settings: Settings = MappingProxyType({})) -> Subject:
    """Return a bundle's facts with one model for each name and adapter; ``settings`` by name."""
    models = tuple(
        ModelEntry(
            name=name,
            adapter=adapter,
            path=f"models/{name}",
            format="safetensors",
            origin="",
            settings=settings.get(name, {}),
        )
        for name, adapter in adapters.items()
    )
    return Subject(name="rag", version="1.0.0", target=TARGET, models=models)


def make_kit(
    folder: Path, checkout: Path, adapters: Mapping[str, str], settings: Settings = MappingProxyType({})
) -> Path:
    """Write the kit of a checkout below ``folder`` and return where it is."""
    store = Store(folder / "cache")
    for path, data in ragtrace_kit((locked(checkout, store),), subject(adapters, settings), store).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder / "config" / "ragtrace-kit"


def integrate(kit: Path, checkout: Path) -> str:
    """Do to a checkout what INTEGRATION.md says; return what ``patch`` said."""
    subprocess.run([program("cp"), "-R", f"{kit}/src/.", f"{checkout}/src/"], check=True)
    with (kit / "ragtrace.patch").open("rb") as stream:
        done = subprocess.run(
            [program("patch"), "-p1", "--fuzz=0"],
            cwd=checkout,
            stdin=stream,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
