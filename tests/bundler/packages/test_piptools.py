"""The second resolver: pip-tools itself, on folders of tiny wheels, and where it differs from uv."""

import json
from pathlib import Path
from typing import Final

import pytest

from bundler.packages.compare import compare_resolvers
from bundler.packages.pipconfig import PipConfig, load_pip_config
from bundler.packages.piptools import PipToolsResolver, _environment
from bundler.packages.resolver import Pin, Resolution, UvResolver
from bundler.spec import IndexSpec
from bundler.specfile import load_spec
from bundler.store import Store
from manifests.errors import SourceError, UsageError
from manifests.manifest import Target
from tests.factories_cli import Builder, write_spec
from tests.factories_closed import HOST_TARGET, PYTHON, cache_folder
from tests.factories_wheels import make_wheel

TAG: Final = f"cp{PYTHON.replace('.', '')}-cp{PYTHON.replace('.', '')}"
MACHINE: Final = HOST_TARGET.platform.partition("-")[0]


@pytest.fixture(scope="module")
def store() -> Store:
    """A store that has the environment of pip-tools, made once per machine from the real index."""
    kept = Store(cache_folder() / "sealift")
    _environment(kept, load_pip_config())
    return kept


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip and uv know."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pip_tools(store: Store) -> PipToolsResolver:
    return PipToolsResolver(config=load_pip_config(), store=store)


def uv() -> UvResolver:
    return UvResolver(config=load_pip_config())


def test_same_answer_as_uv(store: Store, links: Path) -> None:
    make_wheel(links, "app", "1.0", requires=["lib>=1", 'winlib; sys_platform == "win32"', "more[fast]"])
    make_wheel(links, "lib", "1.0")
    make_wheel(links, "lib", "1.0", tag=f"{TAG}-manylinux_2_17_{MACHINE}")
    make_wheel(links, "lib", "1.0", tag=f"{TAG}-manylinux_2_35_{MACHINE}")
    make_wheel(links, "more", "2.0", requires=['quick; extra == "fast"'], headers=["Provides-Extra: fast"])
    make_wheel(links, "quick", "3.0")
    found = pip_tools(store).resolve(["app"], HOST_TARGET, {})
    assert found.resolver == "pip-tools 7.6.2"
    assert [pin.filename for pin in found.pins] == [
        "app-1.0-py3-none-any.whl",
        f"lib-1.0-{TAG}-manylinux_2_17_{MACHINE}.whl",
        "more-2.0-py3-none-any.whl",
        "quick-3.0-py3-none-any.whl",
    ]
    expected = uv().resolve(["app"], HOST_TARGET, {}).pins
    assert [(pin.name, pin.version, pin.sha256, pin.url) for pin in found.pins] == [
        (pin.name, pin.version, pin.sha256, pin.url) for pin in expected
    ]


def test_kept_and_constrained_versions(store: Store, links: Path) -> None:
    for number in ("1.0", "2.0", "3.0"):
        make_wheel(links, "lib", number)

    def version(keep: dict[str, str], *constraints: str) -> str:
        return pip_tools(store).resolve(["lib"], HOST_TARGET, keep, constraints=constraints).pins[0].version

    assert version({"lib": "1.0"}) == "1.0"
    assert version({}, "lib<3") == "2.0"


def test_no_solution_is_a_source_error(store: Store, links: Path) -> None:
    make_wheel(links, "lib", "1.0")
    with pytest.raises(SourceError) as caught:
        pip_tools(store).resolve(["lib>1"], HOST_TARGET, {})
    assert caught.value.message.startswith(f"pip-tools finds no solution for {HOST_TARGET.label}: ")
    assert "lib>1" in caught.value.message


def test_what_it_cannot_do_is_said(store: Store) -> None:
    windows = Target(platform="x86_64-pc-windows-msvc", python=PYTHON, accelerator="cpu")
    with pytest.raises(UsageError) as caught:
        pip_tools(store).resolve(["lib"], windows, {})
    host = f"{MACHINE}-manylinux with Python {PYTHON}"
    assert caught.value.message == (
        f"pip-tools resolves for this host's own kind only, {host}; "
        f"the target is x86_64-pc-windows-msvc with Python {PYTHON}"
    )
    bound = (IndexSpec(url="https://index.invalid/simple", packages=("lib", "more")),)
    with pytest.raises(UsageError, match=r"can't bind packages to an index, .*: lib, more"):
        PipToolsResolver(config=PipConfig(), store=store, indexes=bound).resolve(["lib"], HOST_TARGET, {})
    with pytest.raises(UsageError, match="not to build lib"):
        pip_tools(store).resolve(["lib"], HOST_TARGET, {}, sources=["lib"])


class Fixed:
    """A resolver that answers with given pins."""

    def __init__(self, *pins: Pin) -> None:
        self.pins = pins

    def resolve(self, *_: object, **__: object) -> Resolution:
        return Resolution(pins=self.pins, resolver="fixed 1")


def pin(name: str, version: str, sha256: str = "a" * 64, build: str = "") -> Pin:
    filename = f"{name}-{version}{build}-py3-none-any.whl"
    return Pin(name=name, version=version, filename=filename, url=f"https://x.invalid/{filename}", sha256=sha256)


def test_no_difference_is_said(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path / "demo.toml", "a"))
    found = compare_resolvers(spec, Fixed(pin("a", "1")), Fixed(pin("a", "1")))
    assert found.to_text() == "fixed 1: 1 packages; fixed 1: 1 packages; no difference"


def test_differences_are_shown(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path / "demo.toml", "a"))
    one = Fixed(pin("a", "1"), pin("b", "1"), pin("c", "1"), pin("e", "1"), pin("f", "1"))
    other = Fixed(
        pin("a", "1"), pin("b", "2", "b" * 64), pin("d", "1"), pin("e", "1", "c" * 64), pin("f", "1", "d" * 64, "-7")
    )
    found = compare_resolvers(spec, one, other)
    assert found.to_text().splitlines() == [
        "b  1 | 2",
        "c  1 | not there",
        "d  not there | 1",
        f"e  sha256 {'a' * 64} | sha256 {'c' * 64}",
        "f  f-1-py3-none-any.whl | f-1-7-py3-none-any.whl",
        "fixed 1: 5 packages; fixed 1: 5 packages; 5 differ",
    ]
    assert found.to_json()["differences"][1] == {  # type: ignore[index] # Json, whose shape is known here
        "name": "c",
        "first": {"version": "1", "filename": "c-1-py3-none-any.whl", "sha256": "a" * 64},
        "second": None,
    }


@pytest.mark.slow
def test_commands(store: Store, links: Path, tmp_path: Path) -> None:
    from importlib.metadata import version  # noqa: PLC0415 - only here

    make_wheel(links, "lib", "1.0")
    make_wheel(links, "uv", version("uv"), tag=f"py3-none-manylinux_2_17_{MACHINE}")
    write_spec(tmp_path / "demo.toml", "lib")
    builder = Builder(folder=tmp_path, links=(links,), variables={"XDG_CACHE_HOME": str(store.root.parent)})
    document = builder.json("lock", "demo.toml", "--compare")
    assert document["differences"] == []
    assert document["second"] == {"resolver": "pip-tools 7.6.2", "packages": 1}
    assert not (tmp_path / "demo.lock").exists()
    builder.json("lock", "demo.toml", "--resolver", "pip-tools")
    assert json.loads((tmp_path / "demo.lock").read_text())["resolver"] == "pip-tools 7.6.2"
