"""The proof that wheels are complete for a target: what is missing is found without a resolver."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bundler.packages.completeness import (
    WheelMetadata,
    check_complete,
    marker_environments,
    parse_wheel_metadata,
    read_wheel_metadata,
    unneeded,
)
from bundler.store import Store
from manifests.errors import IntegrityError, SourceError
from manifests.manifest import Target
from tests.factories_index import read_metadata
from tests.factories_wheels import make_wheel

LINUX: Final = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
ARM: Final = Target(platform="aarch64-manylinux_2_28", python="3.11", accelerator="cpu")
MAC: Final = Target(platform="aarch64-apple-darwin", python="3.12", accelerator="mps")
WINDOWS: Final = Target(platform="x86_64-pc-windows-msvc", python="3.13", accelerator="cpu")
ALL: Final = (LINUX, ARM, MAC, WINDOWS)


def wheel(name: str, version: str, *requires: str, python: str = "", build: str = "") -> WheelMetadata:
    headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    headers += "".join(f"Requires-Dist: {item}\n" for item in requires)
    headers += f"Requires-Python: {python}\n" if python else ""
    filename = f"{name.replace('-', '_')}-{version}{build}-py3-none-any.whl"
    return parse_wheel_metadata(headers.encode(), filename)


def problems(target: Target, roots: list[str], *wheels: WheelMetadata, python: str | None = None) -> list[str]:
    """Return the lines of the refusal, none when the wheels are complete."""
    refusal = None
    try:
        check_complete(wheels, roots, target, python)
    except SourceError as error:
        refusal = error
    if refusal is None:
        return []
    first, *lines = refusal.message.splitlines()
    assert first == f"the wheels for {target.label} are not complete:"
    assert refusal.hint == "name what is missing in [packages] requirements, then: bundler lock SPEC --upgrade"
    return [line.removeprefix("  ") for line in lines]


def test_complete_wheels_pass() -> None:
    wheels = [wheel("app", "1.0", "lib>=1", "More_Things[fast]~=2.0"), wheel("lib", "1.5+cpu"), wheel("quick", "3.0")]
    wheels.append(wheel("more-things", "2.1", 'quick>=3; extra == "fast"', 'never; extra == "other"'))
    for target in ALL:
        assert problems(target, ["app", "lib==1.5"], *wheels) == []


def test_what_is_missing_is_named_with_who_needs_it_and_how_to_add_it() -> None:
    found = problems(LINUX, ["app>=1", "gone"], wheel("app", "1.0", "lib[x]<3,>=2", "lost"), wheel("lib", "1.0"))
    assert found == [
        "the spec requires gone: there is no wheel of gone; add 'gone'",
        "app 1.0 requires lib[x]<3,>=2: there is lib 1.0; add 'lib[x]<3,>=2'",
        "app 1.0 requires lost: there is no wheel of lost; add 'lost'",
    ]


def test_each_version_that_does_not_satisfy_is_named() -> None:
    assert problems(LINUX, ["app==2"], wheel("app", "1.0")) == [
        "the spec requires app==2: there is app 1.0; add 'app==2'"
    ]
    assert problems(LINUX, ["app>=2.0a1"], wheel("app", "2.0rc1")) == []


def test_two_wheels_of_one_package_are_refused() -> None:
    assert problems(LINUX, ["app"], wheel("app", "1.0"), wheel("app", "1.0", build="-7")) == [
        "app: 2 wheels, expected 1: app-1.0-py3-none-any.whl, app-1.0-7-py3-none-any.whl"
    ]


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("sys_platform == 'linux'", (LINUX, ARM)),
        ("sys_platform == 'darwin'", (MAC,)),
        ("sys_platform == 'win32'", (WINDOWS,)),
        ("os_name == 'nt'", (WINDOWS,)),
        ("platform_system != 'Windows'", (LINUX, ARM, MAC)),
        ("platform_system == 'Darwin'", (MAC,)),
        ("platform_machine == 'x86_64'", (LINUX,)),
        ("platform_machine == 'aarch64'", (ARM,)),
        ("platform_machine == 'arm64'", (MAC,)),
        ("platform_machine == 'AMD64'", (WINDOWS,)),
        ("python_version >= '3.12'", (MAC, WINDOWS)),
        ("python_full_version < '3.12'", (LINUX, ARM)),
        ("implementation_name == 'pypy'", ()),
        ("platform_python_implementation == 'CPython'", ALL),
        ("platform_release >= '20.0'", ()),
        ("extra == 'test'", ()),
    ],
)
def test_markers_are_the_targets(marker: str, holds: tuple[Target, ...]) -> None:
    app = wheel("app", "1.0", f"lib; {marker}")
    assert tuple(target for target in ALL if problems(target, ["app"], app)) == holds


def test_patch_releases_at_both_ends_count_unless_one_is_carried() -> None:
    early = wheel("app", "1.0", 'lib; python_full_version < "3.11.3"')
    late = wheel("app", "1.0", 'lib; python_full_version >= "3.11.4"')
    assert problems(LINUX, ["app"], early)
    assert problems(LINUX, ["app"], late)
    assert problems(LINUX, ["app"], early, python="3.11.9") == []
    assert problems(LINUX, ["app"], late, python="3.11.2") == []
    assert problems(LINUX, ["app"], late, python="3.11.9")
    assert [item["python_full_version"] for item in marker_environments(LINUX)] == ["3.11.0", "3.11.99"]


def test_python_must_be_accepted() -> None:
    assert problems(LINUX, ["app"], wheel("app", "1.0", python=">=3.12")) == [
        "app 1.0 requires Python >=3.12, the target has 3.11"
    ]
    assert problems(LINUX, ["app"], wheel("app", "1.0", python=">=3.11.4")) == []
    assert problems(LINUX, ["app"], wheel("app", "1.0", python=">=3.11.4"), python="3.11.2") != []
    assert problems(WINDOWS, ["app"], wheel("app", "1.0", python=">=3.9,<4")) == []


def test_extras_are_followed_from_wheel_to_wheel() -> None:
    app = wheel("app", "1.0", 'app[one]; extra == "All_Of"', 'lib[deep]; extra == "one"')
    lib = wheel("lib", "1.0", 'hidden>=4; extra == "deep"')
    assert problems(LINUX, ["app"], app, lib) == []
    assert problems(LINUX, ["app[all-of]"], app, lib) == [
        "lib[deep] 1.0 requires hidden>=4: there is no wheel of hidden; add 'hidden>=4'"
    ]


def test_wheels_that_nobody_asks_for_count_too() -> None:
    stray = wheel("stray", "1.0", "lost")
    assert problems(LINUX, ["app"], wheel("app", "1.0"), stray) == [
        "stray 1.0 requires lost: there is no wheel of lost; add 'lost'"
    ]
    wheels = [wheel("app", "1.0", "lib"), wheel("lib", "1.0", "app"), stray, wheel("other", "1.0", "stray")]
    assert unneeded(wheels, ["app"], LINUX) == ("other", "stray")
    assert unneeded(wheels, ["app", "other"], LINUX) == ()


def test_requirement_that_is_none_is_named() -> None:
    (line,) = problems(LINUX, ["app"], wheel("app", "1.0", "lib (what"))
    assert line.startswith("app 1.0 requires 'lib (what', which can't be read: ")


def test_long_lists_are_cut() -> None:
    lines = problems(LINUX, [f"gone{number:02}" for number in range(30)])
    assert len(lines) == 21
    assert lines[-1] == "and 10 more"


def test_metadata_is_read_once(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "app", "1.0", requires=["lib>=1"], headers=["Requires-Python: >=3.11"])
    store = Store(tmp_path / "cache")
    sha256 = store.add_file(path).sha256
    found = read_wheel_metadata(store, sha256, path.name)
    assert (found.name, str(found.version), found.requires, found.requires_python) == (
        "app",
        "1.0",
        ("lib>=1",),
        ">=3.11",
    )
    assert found == parse_wheel_metadata(read_metadata(path), path.name)
    store.drop(sha256)
    assert read_wheel_metadata(store, sha256, path.name) == found
    with pytest.raises(SourceError, match="is not in the cache"):
        read_wheel_metadata(store, "0" * 64, path.name)
    (tmp_path / "bad").write_bytes(b"no zip")
    with pytest.raises(IntegrityError, match=r"^app-1.0-py3-none-any.whl: has no METADATA that can be read: "):
        read_wheel_metadata(store, store.add_file(tmp_path / "bad").sha256, path.name)


def test_every_single_wheel_of_a_chain_is_missed() -> None:
    wheels = [wheel(f"p{number}", "1.0", f"p{number + 1}>=1") for number in range(9)] + [wheel("p9", "1.0")]
    assert problems(LINUX, ["p0"], *wheels) == []
    for gone in wheels:
        assert len(problems(LINUX, ["p0"], *(item for item in wheels if item is not gone))) == 1
        older = replace(gone, version=parse_wheel_metadata(b"", "x-0.9-py3-none-any.whl").version)
        expected = 0 if gone.name == "p0" else 1
        assert len(problems(LINUX, ["p0"], *(older if item is gone else item for item in wheels))) == expected
