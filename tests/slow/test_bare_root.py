"""A bare Debian, no network, nothing but the bundle and its kit: it installs the first time."""

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import is_root, make_key
from tests.factories_closed import HOST_TARGET, NOBODY, ClosedBundle, flip_bit, make_closed_bundle
from tests.roots import PYTHON, Root, fresh_root

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_root(), reason="chroot and overlay need root")]
VERIFIER = ("python3", "-I", "-S", "/media/kit/runtime.pyz")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ClosedBundle:
    """A bundle for the root's Python."""
    folder = tmp_path_factory.mktemp("bundle")
    target = replace(HOST_TARGET, python=PYTHON)
    return make_closed_bundle(folder, make_key(folder / "key"), "six", "click", target=target)


@pytest.fixture
def root(tmp_path: Path, bundle: ClosedBundle) -> Iterator[Root]:
    """A bare system, into whose /media bundle and kit were carried."""
    with fresh_root(tmp_path / "root") as system:
        media = system.path / "media"
        shutil.copy(bundle.tar, media / "demo.bundle.tar")
        shutil.copytree(bundle.kit, media / "kit")
        yield system


def install(root: Root, prefix: str, user: int | None = None) -> None:
    words = ["sh", "/media/kit/install.sh", "--kit", "/media/kit", "/media/demo.bundle.tar", "--prefix", prefix]
    done = root.run(*words, user=user)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("prefix", "user"), [("/opt/demo", None), ("/home/demo/prefix", NOBODY)])
def test_install_verify_status(root: Root, prefix: str, user: int | None) -> None:
    if user is not None:
        home = root.path / "home/demo"
        home.mkdir()
        shutil.chown(home, user, user)
    assert root.run("python3", "-c", "import socket; print(len(socket.if_nameindex()))").stdout == "1\n"
    install(root, prefix, user)
    verified = root.run(*VERIFIER, "verify", "--prefix", prefix, "--trust", "/media/kit/allowed_signers", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    sections = {section["name"]: section["problems"] for section in json.loads(verified.stdout)["sections"]}
    assert sections == {"signature": [], "files": [], "venv": [], "host": []}
    status = json.loads(root.run(*VERIFIER, "status", "--prefix", prefix, "--json", user=user).stdout)
    assert status["releases"] == {status["live"]: "live"}
    asked = root.run(f"{prefix}/current/venv/bin/python", "-I", "-c", "import six, click; print(six.__version__)")
    assert asked.stdout == "1.17.0\n"
    install(root, prefix, user)


def test_everything_of_an_ordinary_user_s_prefix_is_the_user_s(root: Root) -> None:
    home = root.path / "home/demo"
    home.mkdir()
    shutil.chown(home, NOBODY, NOBODY)
    install(root, "/home/demo/prefix", NOBODY)
    owners = {path.lstat().st_uid for path in home.rglob("*")}
    assert owners == {NOBODY}
    writable = [path for path in home.rglob("*") if path.is_file() and path.stat().st_mode & stat.S_IWOTH]
    assert [path.name for path in writable if "var" not in path.relative_to(home / "prefix").parts] == []


def test_a_damaged_medium_installs_nothing(root: Root, bundle: ClosedBundle) -> None:
    flip_bit(root.path / "media/demo.bundle.tar", bundle.tar.stat().st_size // 2)
    words = ["sh", "/media/kit/install.sh", "--kit", "/media/kit", "/media/demo.bundle.tar", "--prefix", "/opt/demo"]
    done = root.run(*words)
    assert done.returncode == 5, done.stderr
    status = root.run(*VERIFIER, "status", "--prefix", "/opt/demo")
    assert status.stdout == "nothing is installed in /opt/demo\n"


def test_the_unpacked_bundle_checks_itself_with_stock_tools(root: Root) -> None:
    script = (
        "mkdir /tmp/u && cd /tmp/u && tar -xf /media/demo.bundle.tar && sha256sum --quiet -c docs/SHA256SUMS && "
        'grep -o \'"path":"docs/SHA256SUMS","sha256":"[0-9a-f]*"\' manifest.json && sha256sum docs/SHA256SUMS'
    )
    done = root.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    quoted, summed = done.stdout.splitlines()
    assert quoted.split('"')[-2] == summed.split()[0]
    with_digest = root.run(
        *("sh", "/tmp/u/bootstrap/install.sh", "/tmp/u", "--prefix", "/opt/demo"),
        *("--trust", "/media/kit/allowed_signers"),
    )
    assert with_digest.returncode == 4
    assert "nothing was executed: compare this digest with the builder's" in with_digest.stderr
