"""Applications: plain files of folders and commits, wheels that are given, and projects that are built."""

import base64
import hashlib
import os
import subprocess
import unicodedata
import zipfile
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.apps import check_app, lock_app, lock_app_wheel
from bundler.contents.compose import compose
from bundler.lock import Lock, LockedApp, load_lock, write_lock
from bundler.packages.pipconfig import load_pip_config
from bundler.packages.resolver import UvResolver
from bundler.packages.sdists import Builder
from bundler.relock import lock_spec
from bundler.spec import AppSpec, Spec
from bundler.specfile import check_spec, load_spec
from bundler.store import Store
from manifests.errors import IntegrityError, SealiftError, SourceError, SpecError
from manifests.manifest import Target, parse_manifest
from tests.factories_sdists import make_project, make_uv_wheel
from tests.factories_wheels import make_wheel

TARGET: Final = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
HANGUL: Final = "보고서/안내문.txt"
SPEC: Final = """
[bundle]
name = "demo"
version = "1.0"
[target]
platform = "x86_64-manylinux_2_28"
python = "3.11"
[[app]]
name = "front"
source = "dir:front"
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
    return folder


def app_of(source: str, **keys: tuple[str, ...]) -> AppSpec:
    return AppSpec(name="web", source=source, **keys)


def spec_of(folder: Path, *apps: AppSpec, target: Target = TARGET) -> Spec:
    return Spec(path=folder / "spec.toml", name="demo", version="1", target=target, apps=apps)


def plain(folder: Path, source: str, **keys: tuple[str, ...]) -> LockedApp:
    app = app_of(source, **keys)
    check_app(app, spec_of(folder, app))
    return lock_app(app, spec_of(folder, app), Store(folder / "cache"))


def listing(app: LockedApp, folder: Path) -> dict[str, tuple[bytes, bool]]:
    store = Store(folder / "cache")
    return {file.path: (store.path(file.sha256).read_bytes(), file.executable) for file in app.files}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com", "-c", "init.defaultBranch=main"]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", *who, "-C", str(folder), *arguments]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with one commit: a script, a Korean name, a link, and a filter that must not run."""
    folder = tmp_path / "repo"
    (folder / "보고서").mkdir(parents=True)
    (folder / HANGUL).write_text("안녕\n", encoding="utf-8")
    (folder / "run.sh").write_bytes(b"#!/bin/sh\r\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "again.sh").symlink_to("run.sh")
    (folder / ".gitattributes").write_text("run.sh text eol=lf\nsecret.txt export-ignore\n")
    (folder / "secret.txt").write_text("$Format:%H$\n")
    git(folder, "init", "--quiet")
    git(folder, "-c", "core.autocrlf=false", "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_a_folder_with_patterns_modes_and_korean_names(tmp_path: Path) -> None:
    web = tmp_path / "web"
    (web / "보고서").mkdir(parents=True)
    (web / HANGUL).write_text("x")
    (web / "run.sh").write_text("y")
    (web / "run.sh").chmod(0o700)
    (web / "left.log").write_text("z")
    (web / "again").symlink_to("run.sh")
    app = plain(tmp_path, "dir:web", exclude=("*.log",))
    assert listing(app, tmp_path) == {
        "app/web/again": (b"y", True),
        "app/web/run.sh": (b"y", True),
        f"app/web/{HANGUL}": (b"x", False),
    }
    assert [file.path for file in plain(tmp_path, "dir:web", include=("보고서/*",)).files] == [f"app/web/{HANGUL}"]
    assert {file.origin for file in app.files} == {"pkg:generic/web"}


def test_names_in_the_form_of_macos_become_nfc(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "한글.txt")
    assert decomposed != "한글.txt"
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / decomposed).write_text("one")
    assert [file.path for file in plain(tmp_path, "dir:web", include=("한글*",)).files] == ["app/web/한글.txt"]
    (tmp_path / "web" / "한글.txt").write_text("two")
    with pytest.raises(SpecError, match="can't exist side by side on every file system"):
        plain(tmp_path, "dir:web")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda web: web.joinpath("a:b").write_text("x"), "file names that can't travel: 'a:b' has the character ':'"),
        (lambda web: web.joinpath("out").symlink_to("/etc/hostname"), "source: out is a link out of the folder"),
        (lambda web: web.joinpath("x").unlink(), "holds no files"),
    ],
)
def test_a_folder_that_cannot_travel(tmp_path: Path, make: object, message: str) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "x").write_text("x")
    make(tmp_path / "web")  # type: ignore[operator] # one of the cases above
    with pytest.raises(SpecError) as caught:
        plain(tmp_path, "dir:web")
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{tmp_path / 'spec.toml'}: app 'web': ")


def test_a_commit_travels_as_it_was_committed(tmp_path: Path, repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    stored = git(repository, "cat-file", "blob", "HEAD:run.sh").encode()
    (repository / "run.sh").write_text("changed since\n")
    (repository / "untracked.txt").write_text("never\n")
    app = plain(tmp_path, f"git:repo@{commit}", exclude=(".git*",))
    found = listing(app, tmp_path)
    assert found.pop(f"app/web/{HANGUL}") == ("안녕\n".encode(), False)
    assert found.pop("app/web/secret.txt") == (b"$Format:%H$\n", False)
    assert {path: (data.strip(), mode) for path, (data, mode) in found.items()} == {
        "app/web/again.sh": (stored, True),
        "app/web/run.sh": (stored, True),
    }
    assert app.entry.origin == f"pkg:generic/web@{commit}"
    assert {file.source for file in app.files} == {"commit"}
    assert str(tmp_path) not in str(app)


def test_a_commit_of_a_repository_elsewhere_is_fetched(tmp_path: Path, repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    (repository / "more.txt").write_text("x")
    git(repository, "add", "more.txt")
    git(repository, "commit", "--quiet", "--message", "second")
    app = plain(tmp_path, f"git:file://{repository}@{first}", include=("*.sh", "more.txt"))
    assert [file.path for file in app.files] == ["app/web/again.sh", "app/web/run.sh"]
    missing = "0" * 40
    with pytest.raises(SourceError, match=r"app 'web': (no commit|file://.* can't be fetched)"):
        plain(tmp_path, f"git:file://{repository}@{missing}")
    with pytest.raises(SourceError, match=r"app 'web': file:///nonexistent can't be fetched: "):
        plain(tmp_path, f"git:file:///nonexistent@{missing}")
    with pytest.raises(SpecError, match="credentials don't belong in a spec") as caught:
        plain(tmp_path, f"git:https://me:hunter2@host.invalid/x@{missing}")
    assert "hunter2" not in caught.value.render()


def test_what_a_commit_only_points_at_is_named(tmp_path: Path, repository: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
    (repository / "weights.bin").write_text(pointer)
    git(repository, "add", "weights.bin")
    git(repository, "commit", "--quiet", "--message", "lfs")
    source = f"git:repo@{git(repository, 'rev-parse', 'HEAD')}"
    with pytest.raises(SpecError, match=r"app 'web': Git LFS keeps the content of weights\.bin elsewhere$"):
        plain(tmp_path, source)
    assert "app/web/weights.bin" not in listing(plain(tmp_path, source, exclude=("*.bin",)), tmp_path)
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor/lib")
    (repository / "out").symlink_to("../elsewhere")
    git(repository, "add", "out")
    git(repository, "commit", "--quiet", "--message", "submodule")
    source = f"git:repo@{git(repository, 'rev-parse', 'HEAD')}"
    with pytest.raises(SpecError, match=r"app 'web': submodules don't travel: vendor/lib$"):
        plain(tmp_path, source, exclude=("*.bin",))
    with pytest.raises(SpecError, match=r"app 'web': out is a link to something that is no file of the commit$"):
        plain(tmp_path, source, exclude=("*.bin", "vendor/*"))


def test_without_git_or_commit_or_repository(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=rf"app 'web': no commit {'0' * 40} in {repository}: "):
        plain(tmp_path, f"git:repo@{'0' * 40}")
    with pytest.raises(SpecError, match=r"app 'web': source: .*/none is not a folder$"):
        plain(tmp_path, f"git:none@{'0' * 40}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"app 'web': source 'git:' needs the program git$"):
        plain(tmp_path, f"git:repo@{'0' * 40}")


def wheel_app(folder: Path, source: str, *, target: Target = TARGET, extras: tuple[str, ...] = ()) -> tuple[str, ...]:
    app = app_of(source, extras=extras)
    store = Store(folder / "cache")
    builder = Builder(store=store, resolver=UvResolver(config=load_pip_config()), target=target)
    spec = spec_of(folder, app, target=target)
    check_app(app, spec)
    return lock_app_wheel(app, spec, builder).requirements


def test_the_requirements_of_a_wheel_are_those_of_the_target(tmp_path: Path) -> None:
    requires = [
        "always>=1",
        "never; sys_platform == 'win32'",
        "extra-one[x]>=2; extra == 'one'",
        "both; extra == 'one' and sys_platform == 'linux'",
        "late; python_full_version >= '3.11.4'",
    ]
    wheel = _with_extras(make_wheel(tmp_path, "web", "1.0", requires=requires), "One")
    source = f"wheel:{wheel.name}"
    assert wheel_app(tmp_path, source) == ("always>=1", "late")
    assert wheel_app(tmp_path, source, extras=("one",)) == ("always>=1", "extra-one[x]>=2", "both", "late")
    with pytest.raises(SpecError, match=r"app 'web': its wheel has no extra two; it has: one$"):
        wheel_app(tmp_path, source, extras=("two",))


def _with_extras(wheel: Path, *extras: str) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    (path,) = (name for name in members if name.endswith("METADATA"))
    lines = "".join(f"Provides-Extra: {extra}\n" for extra in extras).encode()
    return make_raw(wheel, {**members, path: members[path] + lines})


def make_raw(wheel: Path, members: dict[str, bytes]) -> Path:
    info = next(name.partition("/")[0] for name in members if ".dist-info/" in name)
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in members.items()
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {**members, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return wheel


def test_a_wheel_that_cannot_be_used(tmp_path: Path) -> None:
    make_wheel(tmp_path, "web", "1.0", tag="cp312-cp312-win_amd64")
    make_wheel(tmp_path, "url", "1.0", requires=["x @ https://me:hunter2@host.invalid/x.whl"])
    (tmp_path / "bad.whl").write_bytes(b"")
    broken = make_wheel(tmp_path, "broken", "1.0")
    with zipfile.ZipFile(broken, "a") as archive:
        archive.writestr("broken/extra.py", "x")
    cases: list[tuple[str, type[SealiftError], str]] = [
        ("none.whl", SpecError, f"app 'web': source: {tmp_path / 'none.whl'} is not a file"),
        ("bad.whl", SpecError, "app 'web': source: bad.whl is not the name of a wheel"),
        ("web-1.0-cp312-cp312-win_amd64.whl", SpecError, f"doesn't fit the target {TARGET.label}"),
        ("url-1.0-py3-none-any.whl", SpecError, "app 'web': its wheel requires x from a url, which is not supported"),
        ("broken-1.0-py3-none-any.whl", IntegrityError, "broken/extra.py: is not in RECORD"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind) as caught:
            wheel_app(tmp_path, f"wheel:{name}")
        assert message in caught.value.message
        assert "hunter2" not in caught.value.render()


def lock(folder: Path, text: str, previous: Lock | None = None) -> Lock:
    (folder / "demo.toml").write_text(text, encoding="utf-8")
    config = load_pip_config()
    spec = load_spec(folder / "demo.toml")
    check_spec(spec)
    return lock_spec(spec, Store(folder / "cache"), UvResolver(config=config), config, previous=previous)


def test_a_bundle_with_an_application_of_every_kind(tmp_path: Path, links: Path, repository: Path) -> None:
    for name in ("dep", "gpu", "base"):
        make_wheel(links, name, "1.0")
    make_wheel(tmp_path, "given", "2.0", requires=["dep", "My-App>=3"])
    make_project(
        tmp_path / "own", "my-app", "3.0", requires=["base", "gpu; extra == 'gpu'"], extras=["gpu"],
        files={f"my_app/{HANGUL}": b"x"},
    )  # fmt: skip
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "index.html").write_text("<p>")
    text = SPEC + (
        '[[app]]\nsource = "wheel:given-2.0-py3-none-any.whl"\n'
        '[[app]]\nname = "own"\nsource = "project:own"\nextras = ["gpu"]\n'
        f'[[app]]\nsource = "git:repo@{git(repository, "rev-parse", "HEAD")}"\n'
    )
    made = lock(tmp_path, text)
    names = [wheel.path.split("/")[1].split("-")[0] for wheel in made.wheels]
    assert names == ["base", "dep", "given", "gpu", "my_app"]
    assert [(build.source, build.wheel) for build in made.builds] == [("project own", "my_app-3.0-py3-none-any.whl")]
    assert [app.entry.name for app in made.apps] == ["front", "repo"]
    assert lock(tmp_path, text, made) == made
    write_lock(tmp_path / "demo.lock", made)
    assert load_lock(tmp_path / "demo.lock") == made
    manifest = parse_manifest(compose(made, Store(tmp_path / "cache")).manifest.encode())
    modes = {entry.path: entry.mode for entry in manifest.files}
    assert (modes["app/repo/run.sh"], modes[f"app/repo/{HANGUL}"]) == (0o755, 0o644)
    (tmp_path / "own" / "my_app" / "__init__.py").write_text("changed = 1\n")
    assert lock(tmp_path, text, made).builds[0].wheel_sha256 != made.builds[0].wheel_sha256


def test_an_application_and_a_package_of_one_name(tmp_path: Path, links: Path) -> None:
    make_wheel(links, "given", "1.0")
    make_wheel(tmp_path, "given", "2.0")
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "x").write_text("x")
    text = SPEC + '[[app]]\nsource = "wheel:given-2.0-py3-none-any.whl"\n[packages]\nrequirements = ["given"]\n'
    with pytest.raises(SpecError, match=r"demo\.toml: app 'given' is asked for as a package of an index too, 1\.0$"):
        lock(tmp_path, text)
