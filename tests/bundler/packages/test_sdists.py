"""Wheels built here from source: real sdists with a backend of their own, in a real isolated environment."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from bundler.lock import Lock, load_lock, write_lock
from bundler.packages.buildenv import _run
from bundler.packages.pipconfig import load_pip_config
from bundler.packages.resolver import UvResolver
from bundler.packages.sdists import Builder, BuildSource, _unpack, project_source
from bundler.rehearsal.sandbox import find_isolation
from bundler.relock import lock_spec
from bundler.spec import host_target
from bundler.specfile import load_spec
from bundler.store import Store
from manifests.digests import sha256_hex
from manifests.errors import IntegrityError, SealiftError, SourceError
from manifests.manifest import Target
from tests.factories_sdists import make_project, make_sdist, make_uv_wheel
from tests.factories_wheels import make_wheel

TARGET: Final = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
SPEC: Final = """
[bundle]
name = "demo"
version = "1.0"
[target]
platform = "x86_64-manylinux_2_28"
python = "3.11"
[packages]
requirements = ["lib"]
build-from-source = ["lib"]
"""


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is all that pip and uv know of."""
    folder = tmp_path / "links"
    make_uv_wheel(folder)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    return folder


def builder(folder: Path, target: Target = TARGET, name: str = "cache") -> Builder:
    return Builder(store=Store(folder / name), resolver=UvResolver(config=load_pip_config()), target=target)


def lock(folder: Path, previous: Lock | None = None, *, cache: str = "cache", spec: str = SPEC) -> Lock:
    (folder / "demo.toml").write_text(spec)
    config = load_pip_config()
    reports: list[str] = []
    resolver = UvResolver(config=config)
    made = lock_spec(
        load_spec(folder / "demo.toml"),
        Store(folder / cache),
        resolver,
        config,
        previous=previous,
        report=reports.append,
    )
    (folder / "reports.json").write_text(json.dumps(reports))
    return made


def source(folder: Path, name: str = "lib", **keys: object) -> BuildSource:
    project = make_project(folder / "src" / name, name, "1.0", **keys)  # type: ignore[arg-type] # each test's own keys
    files = [(path.relative_to(project).as_posix(), path) for path in sorted(project.rglob("*.*")) if path.is_file()]
    return project_source(name, project, files)


def test_a_package_without_a_wheel_is_built_and_recorded(tmp_path: Path, links: Path) -> None:
    make_wheel(links, "dep", "2.0")
    make_wheel(links, "buildtool", "5.0")
    make_wheel(links, "asked", "6.0")
    closed = "import socket\nassert [n for _, n in socket.if_nameindex()] == ['lo'], 'network'"
    code = f"import buildtool, asked\n{closed if find_isolation().is_namespace else ''}"
    keys = {"requires": ["dep"], "build_requires": ["buildtool"], "asks": ["asked"], "code": code}
    project = make_project(tmp_path / "lib", "lib", "1.0", **keys)  # type: ignore[arg-type] # lists and text
    archive = make_sdist(links, project, "lib", "1.0")
    made = lock(tmp_path)
    assert [wheel.path for wheel in made.wheels] == [
        "wheels/dep-2.0-py3-none-any.whl",
        "wheels/lib-1.0-py3-none-any.whl",
    ]
    (built,) = made.builds
    assert built.source == "lib-1.0.tar.gz"
    assert built.source_sha256 == sha256_hex(archive.read_bytes())
    assert built.requirements == ("asked==6.0", "buildtool==5.0")
    wheel = made.wheels[1]
    assert (wheel.sha256, wheel.origin_sha256) == (built.wheel_sha256, built.source_sha256)
    assert (wheel.source, wheel.origin) == ("built lib-1.0.tar.gz", "pkg:pypi/lib@1.0")
    with zipfile.ZipFile(Store(tmp_path / "cache").path(wheel.sha256)) as opened:
        assert opened.read("lib/epoch.txt") == b"315532800"
    write_lock(tmp_path / "demo.lock", made)
    assert load_lock(tmp_path / "demo.lock") == made
    assert str(tmp_path) not in (tmp_path / "demo.lock").read_text()


def test_a_lock_is_never_built_again_and_another_store_builds_the_same(tmp_path: Path, links: Path) -> None:
    counter = tmp_path / "count"
    code = f"open({str(counter)!r}, 'a').write('x')"
    make_sdist(links, make_project(tmp_path / "lib", "lib", "1.0", code=code), "lib", "1.0")
    first = lock(tmp_path)
    before = counter.read_text()
    assert lock(tmp_path, first) == first
    assert lock(tmp_path).builds == first.builds, "an upgrade finds the record of the same build"
    assert counter.read_text() == before
    assert lock(tmp_path, first, cache="other") == first
    assert len(counter.read_text()) == len(before) + 1


def test_a_wheel_is_taken_where_one_satisfies(tmp_path: Path, links: Path) -> None:
    make_sdist(links, make_project(tmp_path / "lib", "lib", "1.0", code="1/0"), "lib", "1.0")
    make_wheel(links, "lib", "1.0")
    made = lock(tmp_path)
    assert (made.builds, [wheel.source for wheel in made.wheels]) == ((), ["local lib-1.0-py3-none-any.whl"])


def test_what_is_not_named_is_not_built(tmp_path: Path, links: Path) -> None:
    make_sdist(links, make_project(tmp_path / "lib", "lib", "1.0"), "lib", "1.0")
    with pytest.raises(SourceError) as caught:
        lock(tmp_path, spec=SPEC.replace('build-from-source = ["lib"]', ""))
    assert "lib" in caught.value.message
    assert not list((tmp_path / "cache").rglob("build/*.json"))


def test_a_build_sees_nothing_of_the_caller(tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert links.is_dir()
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:hunter2@host.invalid/simple")
    code = "assert 'hunter2' not in str(dict(os.environ)), 'leaked'"
    assert builder(tmp_path).build(source(tmp_path, code=code)).wheel == "lib-1.0-py3-none-any.whl"
    done = _run(["sh", "-c", "env"], tmp_path, tmp_path)
    assert "hunter2" not in done.output


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"code": "raise SystemExit('no compiler')"}, "project lib: can't be built: "),
        ({"build_requires": ["absent"]}, "project lib: build requirements: requirement 'absent'"),
        ({"asks": ["absent"]}, "project lib: build requirements: requirement 'absent'"),
        (
            {"build_requires": ["x @ https://u:hunter2@h/x"]},
            "project lib: build-system.requires: 'x @ https://***@h/x'",
        ),
        ({"asks": ["a b"]}, "project lib: its build backend asks: 'a b' is not a requirement"),
        ({"tag": "cp312-none-any"}, "project lib: its build gives lib-1.0-cp312-none-any.whl, which Python 3.11 can't"),
    ],
)
def test_a_build_that_fails_says_why(tmp_path: Path, links: Path, keys: dict[str, object], message: str) -> None:
    assert links.is_dir()
    with pytest.raises(SealiftError) as caught:
        builder(tmp_path).build(source(tmp_path, **keys))  # type: ignore[arg-type] # cases
    assert caught.value.message.startswith(message)
    assert "hunter2" not in str(caught.value)


def test_machine_code_is_for_this_kind_of_host_alone(tmp_path: Path, links: Path) -> None:
    assert links.is_dir()
    host = host_target()
    machine = host.platform.partition("-")[0]
    tag = f"cp{host.python.replace('.', '')}-cp{host.python.replace('.', '')}-linux_{machine}"
    library = {"lib/fast.so": b"\x7fELF GLIBC_2.17 GLIBC_2.34 "}
    made = source(tmp_path, tag=tag, files=library)
    for platform, python, message in (
        (
            "aarch64-apple-darwin",
            host.python,
            f"machine code for this host ({machine} manylinux, Python {host.python})",
        ),
        (f"{machine}-manylinux_2_28", "3.13", f"the target is {machine} manylinux, Python 3.13"),
        (f"{machine}-manylinux_2_28", host.python, "which needs glibc 2.34; the target has 2.28"),
    ):
        with pytest.raises(SourceError) as caught:
            builder(tmp_path, Target(platform=platform, python=python, accelerator="cpu")).build(made)
        assert message in caught.value.message
        assert caught.value.hint is not None
        assert "find-links" in caught.value.hint
    fitting = Target(platform=f"{machine}-manylinux_2_34", python=host.python, accelerator="cpu")
    assert builder(tmp_path, fitting).build(made).wheel.endswith(f"{tag}.whl")


def test_a_project_is_its_files_and_not_its_caches(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", "lib", "1.0")
    plain = [("pyproject.toml", project / "pyproject.toml")]
    (project / ".git").mkdir()
    (project / ".git" / "HEAD").write_text("x")
    cached = [*plain, (".git/HEAD", project / ".git" / "HEAD")]
    assert project_source("p", project, cached).sha256 == project_source("p", project, plain).sha256
    with pytest.raises(SourceError, match=r"^project p: .* has neither pyproject\.toml nor setup\.py$"):
        project_source("p", project, cached[1:])


def test_an_archive_that_is_none(tmp_path: Path, links: Path) -> None:
    for name, content, message in (
        ("a", b"no archive", "can't be unpacked"),
        ("b", _tar("../out", "x"), "can't be unpacked"),
        ("c", _tar("one", "two"), "holds 2 things at its top, expected one folder"),
    ):
        archive = links / f"{name}-1.0.tar.gz"
        archive.write_bytes(content)
        made = builder(tmp_path)
        sha256 = made.store.add_file(archive).sha256
        with pytest.raises(IntegrityError, match=message):
            _unpack(made.store.path(sha256), tmp_path / name, archive.name)
    assert not (tmp_path / "out").exists()


def _tar(*names: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return stream.getvalue()
