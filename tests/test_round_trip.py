"""From a spec to a verified release and back to stock tools, all by command line; the closed side has no network."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from bundler.rehearsal.sandbox import find_isolation
from bundler.relock import SERVING_REQUIREMENTS
from bundler.store import Store
from tests.factories import Key, make_key, tree_of
from tests.factories_cli import Builder, wheel_links, without_privileges, write_spec
from tests.factories_closed import Host, leftovers, make_host
from tests.factories_wheels import make_wheel

NAMES = "import socket; print(*sorted(name for _, name in socket.if_nameindex()))"


@pytest.fixture(scope="module")
def release_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The builder's key."""
    return make_key(tmp_path_factory.mktemp("key") / "release", seed=b"T" * 32)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """A person with an empty home, whose packages are six, click, uv and what a test adds to ``links``."""
    (tmp_path / "links").mkdir()
    (tmp_path / "home").mkdir()
    return Builder(folder=tmp_path / "home", links=(wheel_links(), tmp_path / "links"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host without network."""
    return make_host(tmp_path / "host")


def build(builder: Builder, key: Key, *options: str) -> tuple[Path, Path]:
    """Build with rehearsal; return bundle and kit."""
    document = builder.json("build", "demo.toml", "--output", "out", "--key", key.path, *options)
    return builder.folder / document["bundle"], builder.folder / document["kit"]


def test_the_whole_way(builder: Builder, host: Host, release_key: Key) -> None:
    app = builder.folder / "web"
    app.mkdir()
    (app / "run.sh").write_text("#!/bin/sh\necho 안녕\n")
    (app / "run.sh").chmod(0o755)
    write_spec(builder.folder / "demo.toml", "six==1.17.0", "click==8.3.1", more='[[app]]\nsource = "dir:web"\n')
    done = builder.run("build", "demo.toml", "--output", "out", "--key", release_key.path)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[-2:] == ["... pack", f"... rehearse in a {find_isolation().name}"]
    (tar,) = (builder.folder / "out").glob("*.bundle.tar")
    kit = tar.with_name(tar.name.replace(".bundle.tar", ".kit"))
    carried = Path(shutil.copy(tar, host.home))
    prefix = host.home / "prefix"
    assert host.run(host.python, "-I", "-c", NAMES).stdout == "lo\n"
    script = ("sh", kit / "install.sh", "--kit", kit, carried, "--prefix", prefix)
    assert host.run(*script).returncode == 0
    pyz = kit / "runtime.pyz"
    verified = host.runtime(pyz, "verify", "--prefix", prefix, "--trust", kit / "allowed_signers", "--deep", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert {section["name"]: section["problems"] for section in json.loads(verified.stdout)["sections"]} == {
        "signature": [],
        "files": [],
        "venv": [],
        "host": [],
    }
    status = json.loads(host.runtime(pyz, "status", "--prefix", prefix, "--json").stdout)
    assert status["releases"] == {status["live"]: "live"}
    imported = host.run(prefix / "current/venv/bin/python", "-I", "-c", "import six, click; print(six.__version__)")
    assert imported.stdout == "1.17.0\n", imported.stderr
    assert host.run(prefix / "current/app/web/run.sh").stdout == "안녕\n"
    document = builder.json("inspect", tar)
    assert status["live"] == f"1.0.0-{document['digest'][:12]}"
    (signature,) = document["signatures"]
    assert (signature["fits"], signature["fingerprint"]) == (True, release_key.public.fingerprint)


@pytest.mark.slow
def test_an_upgrade_and_the_way_back(builder: Builder, host: Host, release_key: Key) -> None:
    prefix, names = host.home / "prefix", []
    for number, later_version in enumerate(("1.0.0", "2.0.0"), 1):
        requirements = ["six==1.17.0", "click==8.3.1"][:number]
        write_spec(builder.folder / "demo.toml", *requirements, version=later_version)
        later = replace(builder, variables={"SOURCE_DATE_EPOCH": str(1_800_000_000 + number)})
        later.json("lock", "demo.toml")
        tar, kit = build(later, release_key, "--no-rehearsal")
        trust = kit / "allowed_signers"
        done = host.runtime(kit / "runtime.pyz", "install", tar, "--prefix", prefix, "--trust", trust, "--json")
        assert done.returncode == 0, done.stderr
        names.append(json.loads(done.stdout)["release"])
    assert (prefix / "current").resolve().name == names[1]
    back = host.runtime(kit / "runtime.pyz", "rollback", "--prefix", prefix)
    assert back.stdout == f"{names[0]} is live again\n"
    assert host.runtime(kit / "runtime.pyz", "verify", "--prefix", prefix, "--trust", trust).returncode == 0


def test_rehearse_says_what_it_did(builder: Builder, release_key: Key) -> None:
    write_spec(builder.folder / "demo.toml", "six==1.17.0")
    tar, kit = build(builder, release_key, "--no-rehearsal")
    before = tree_of(tar.parent)
    document = builder.json("rehearse", tar, "--trust", kit / "allowed_signers")
    assert (document["bundle"], document["rehearsed"]) == (str(tar), True)
    assert set(document) == {"bundle", "digest", "not_rehearsed", "rehearsed"}
    assert document["digest"] == builder.json("inspect", tar)["digest"]
    assert tree_of(tar.parent) == before
    stranger = make_key(builder.folder / "stranger", "stranger@example.com")
    code, told = builder.refused("rehearse", tar, "--trust", stranger.allowed_signers)
    assert code == 4
    assert "is not among the allowed signers" in told
    assert tree_of(tar.parent) == before


def test_a_bundle_for_another_host_is_built_but_not_rehearsed(builder: Builder, release_key: Key) -> None:
    make_wheel(builder.links[1], "uv", version("uv"), tag="py3-none-win_amd64")
    spec = write_spec(builder.folder / "demo.toml", "six==1.17.0")
    text = spec.read_text().splitlines()
    spec.write_text("\n".join('platform = "x86_64-pc-windows-msvc"' if "platform" in line else line for line in text))
    done = builder.run("build", "demo.toml", "--output", "out", "--key", release_key.path)
    assert done.returncode == 0, done.stderr
    assert "... NOT rehearsed: the bundle is for x86_64-pc-windows-msvc, this host is " in done.stderr


def refused_build(builder: Builder, key: Key) -> tuple[int, str]:
    """Have a build refused by its rehearsal; nothing stays in the output folder, above all nothing signed."""
    code, told = builder.refused("build", "demo.toml", "--output", "out", "--key", key.path)
    assert list((builder.folder / "out").iterdir()) == []
    return code, told


def test_a_wheel_that_does_not_install_is_never_signed(builder: Builder, release_key: Key) -> None:
    # What it is called is not what it says it is; only an installer notices.
    liar = make_wheel(builder.folder, "other", "1.0").rename(builder.folder / "liar-1.0-py3-none-any.whl")
    write_spec(builder.folder / "demo.toml", "six")
    builder.json("lock", "demo.toml")
    add_to_lock(builder, liar)
    code, told = refused_build(builder, release_key)
    assert code == 8, told
    assert "error: install failed with exit code 8:\n" in told
    assert "liar" in told


def add_to_lock(builder: Builder, wheel: Path) -> None:
    """Add a wheel to lock and store, as a resolver that is wrong about it would."""
    path = builder.folder / "demo.lock"
    lock = json.loads(path.read_text())
    digest = Store(builder.cache / "sealift").add_file(wheel)
    lock["wheels"].append({"path": f"wheels/{wheel.name}", "sha256": digest.sha256, "size": digest.size})
    path.write_text(json.dumps(lock))


@pytest.mark.parametrize(("yaml", "code", "words"), [(b"oops", 8, "import yaml: NameError"), (b"", 9, "tiny")])
def test_what_does_not_load_is_never_signed(
    builder: Builder, release_key: Key, *, yaml: bytes, code: int, words: str
) -> None:
    for requirement in SERVING_REQUIREMENTS:
        name, _, least = requirement.partition(">=")
        files = {"yaml/__init__.py": yaml} if name == "pyyaml" else None
        make_wheel(builder.links[1], name, "2.13.0+cpu" if name == "torch" else least, files=files)
    (builder.folder / "model").mkdir()
    (builder.folder / "model/config.json").write_text("{}")
    (builder.folder / "model/model.safetensors").write_bytes(b"no weights")
    model = '[[model]]\nname = "tiny"\nsource = "dir:model"\nadapter = "causal-lm"\n'
    write_spec(builder.folder / "demo.toml", more=model)
    done = builder.run("build", "demo.toml", "--output", "out", "--key", release_key.path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert list((builder.folder / "out").iterdir()) == []


def test_an_ordinary_user_builds_and_rehearses(builder: Builder, release_key: Key) -> None:
    write_spec(builder.folder / "demo.toml", "six==1.17.0")
    user = replace(builder, umask=0o077, wrap=without_privileges())
    tar, kit = build(user, release_key)
    evidence = tar.parent.glob("*.rehearsal.json*")
    found = (tar, *evidence, *(path for path in kit.rglob("*") if path.is_file()))
    assert leftovers(tar.parent) == sorted(path.relative_to(tar.parent).as_posix() for path in found)
    assert f"{tar.name.removesuffix('.bundle.tar')}.rehearsal.json.sig" in leftovers(tar.parent)
    assert (tar.stat().st_mode & 0o777) in {0o600, 0o644}
