"""A bare Debian, with Python and without, no network, nothing but the bundle and its kit: it installs first time."""

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import is_root, make_key
from tests.factories_closed import HOST_TARGET, NOBODY, ClosedBundle, closed_files, flip_bit, make_closed_bundle
from tests.factories_python import OWN_TARGET, VERSION, with_python
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


@pytest.fixture(scope="module")
def carrying(tmp_path_factory: pytest.TempPathFactory) -> ClosedBundle:
    """A bundle that brings its Python along."""
    folder = tmp_path_factory.mktemp("carrying")
    files = with_python(closed_files("six", target=OWN_TARGET))
    return make_closed_bundle(folder, make_key(folder / "key"), files=files, target=OWN_TARGET)


@pytest.fixture
def no_python(tmp_path: Path, carrying: ClosedBundle) -> Iterator[Root]:
    """A bare system without any Python, into whose /media that bundle and its kit were carried."""
    with fresh_root(tmp_path / "root", package="") as system:
        media = system.path / "media"
        shutil.copy(carrying.tar, media / "demo.bundle.tar")
        shutil.copytree(carrying.kit, media / "kit")
        yield system


@pytest.mark.parametrize(("prefix", "user"), [("/opt/demo", None), ("/home/demo/prefix", NOBODY)])
def test_without_any_python(no_python: Root, prefix: str, user: int | None) -> None:
    if user is not None:
        home = no_python.path / "home/demo"
        home.mkdir()
        shutil.chown(home, user, user)
    look = "ls /usr/bin/python* /usr/local/bin/python* /usr/lib/python3* 2>/dev/null | wc -l"
    assert no_python.run("sh", "-c", look).stdout == "0\n"
    install(no_python, prefix, user)
    python = f"{prefix}/current/venv/bin/python"
    words = (python, "-I", "-B", "/media/kit/runtime.pyz", "verify", "--prefix", prefix)
    verified = no_python.run(*words, "--trust", "/media/kit/allowed_signers", "--json", user=user)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    sections = {section["name"]: section["problems"] for section in json.loads(verified.stdout)["sections"]}
    assert sections == {"signature": [], "files": [], "interpreter": [], "venv": [], "host": []}
    asked = no_python.run(python, "-I", "-c", "import platform, six; print(platform.python_version(), six.__version__)")
    assert asked.stdout == f"{VERSION} 1.17.0\n", asked.stderr
    status = no_python.run(f"{prefix}/current/venv/bin/runtime", "status", "--prefix", prefix, "--json", user=user)
    assert status.returncode == 0, status.stderr
    assert set(json.loads(status.stdout)["releases"].values()) == {"live"}
    install(no_python, prefix, user)
    left = {path.name for path in (no_python.path / prefix[1:] / "python").iterdir()}
    assert len(left) == 1, "no temporary copy of the interpreter stays"
    owners = {path.lstat().st_uid for path in (no_python.path / prefix[1:]).rglob("*")}
    assert owners == {user or 0}


def test_a_planted_interpreter_is_not_executed_there(no_python: Root, carrying: ClosedBundle) -> None:
    tar = no_python.path / "media/demo.bundle.tar"
    data = tar.read_bytes()
    start = data.index(b"\x1f\x8b\x08")  # the archive is the only gzip file of the bundle
    flip_bit(tar, start + 5000)
    words = ["sh", "/media/kit/install.sh", "--kit", "/media/kit", "/media/demo.bundle.tar", "--prefix", "/opt/demo"]
    done = no_python.run(*words)
    assert done.returncode == 5
    assert "is not what the kit's SHA256SUMS lists\nhint: copy the bundle again from its source\n" in done.stderr
    assert not (no_python.path / "opt/demo").exists()
    assert carrying.tar.read_bytes() != tar.read_bytes()
