"""What people get wrong, typed as they type it: exit code, message, and that nothing is left behind.

What the closed side refuses (keys, damage, prefixes, interrupts, ports) is in ``tests/runtime``; full disks and
interrupts of a build are in ``tests/bundler/sealing/test_build.py``.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.factories import tree_of
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import HOST_TARGET
from tests.factories_wheels import make_wheel

LABEL = HOST_TARGET.label
MODEL = '[[model]]\nname = "m"\nsource = "dir:model"\nadapter = "bge-m3"\n'


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """A person with an empty home, whose packages are six, click, uv and what a test adds to ``links``."""
    (tmp_path / "links").mkdir()
    (tmp_path / "home").mkdir()
    return Builder(folder=tmp_path / "home", links=(wheel_links(), tmp_path / "links"))


def spec_of(builder: Builder, *requirements: str, more: str = "") -> Path:
    return write_spec(builder.folder / "demo.toml", *requirements, more=more)


def refused_everywhere(builder: Builder, *commands: str) -> str:
    """Require that each command refuses the spec with exit code 2 and the same words, and writes nothing."""
    before = tree_of(builder.folder)
    told = set()
    for command in commands:
        options = ["--output", "out", "--unsigned"] if command == "build" else []
        code, words = builder.refused(command, "demo.toml", *options)
        assert code == 2, words
        told.add(words)
    assert tree_of(builder.folder) == before
    assert not (builder.folder / "out").exists()
    (words,) = told
    return words


def refused_lock(builder: Builder) -> tuple[int, str]:
    """Have a lock refused; nothing is written beside the spec."""
    code, words = builder.refused("lock", "demo.toml")
    names = {path.name for path in builder.folder.iterdir()}
    assert not {name for name in names if name.endswith((".lock", ".partial"))}, names
    return code, words


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[polcy]\n", "demo.toml: polcy: unknown key\nhint: did you mean 'policy'?\n"),
        ('[policy]\npickel = "allow"\n', "demo.toml: policy.pickel: unknown key\nhint: did you mean 'pickle'?\n"),
        (
            MODEL.replace("adapter", "adaptor"),
            "demo.toml: model[0].adaptor: unknown key\nhint: did you mean 'adapter'?\n",
        ),
        ("[zzz]\n", "demo.toml: zzz: unknown key\nhint: known: app, bundle, env, extends, model, "),
    ],
)
def test_an_unknown_key(builder: Builder, more: str, message: str) -> None:
    spec_of(builder, more=more)
    assert f"error: {message}" in refused_everywhere(builder, "check", "lock", "build")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[bundle\n", "error: demo.toml: line 1, column 8: "),
        (b"[bundle]\nname = 'x'\nname = 'y'\n", "error: demo.toml: line 3, column "),
        (b"\xff\xfe", "error: demo.toml: is not UTF-8 text\nhint: give the path of a spec\n"),
        (b"", "error: demo.toml: bundle.name: "),
        (b"[bundle]\nname = 5\nversion = '1'\n", "error: demo.toml: bundle.name: expected a string, got an integer\n"),
    ],
)
def test_something_that_is_no_spec(builder: Builder, text: bytes, message: str) -> None:
    (builder.folder / "demo.toml").write_bytes(text)
    assert message in refused_everywhere(builder, "check", "lock", "build")


def test_a_requirement_that_is_none(builder: Builder) -> None:
    spec_of(builder, "six >>> 1")
    told = refused_everywhere(builder, "check")
    assert told.startswith("error: demo.toml: packages.requirements[0]: 'six >>> 1' is not a requirement: ")


def test_a_requirement_that_does_not_exist(builder: Builder) -> None:
    spec_of(builder, "six", "no-such-thing-at-all")
    what = "requirement 'no-such-thing-at-all': no index has a package of that name"
    hint = "check the spelling, and `pip config list` for the index that has it"
    assert refused_lock(builder) == (3, f"error: {what}\nhint: {hint}\n")
    told = builder.refused("build", "demo.toml", "--output", "out", "--unsigned")
    assert told == (3, f"error: {what}\nhint: {hint}\n"), "build locks first where there is no lock"
    # pip asks rustc for its version, whose rustup may leave a folder in an empty home.
    others = sorted(path.name for path in builder.folder.iterdir() if path.name not in {"cache", ".rustup"})
    assert others == ["demo.toml"]


def test_a_folder_for_caches_that_can_not_be_made(builder: Builder) -> None:
    spec_of(builder)
    (builder.folder / "file").touch()
    elsewhere = replace(builder, variables={"UV_CACHE_DIR": str(builder.folder / "file/uv")})
    code, told = refused_lock(elsewhere)
    assert code == 7
    assert told.startswith("error: can't use uv's cache: ")
    assert told.endswith("\nhint: name a folder that you may write: XDG_CACHE_HOME, for uv alone UV_CACHE_DIR\n")


def test_a_folder_below_a_file(builder: Builder) -> None:
    spec_of(builder)
    code, told = builder.refused("build", "demo.toml", "--output", "demo.toml/out", "--unsigned", "--no-rehearsal")
    assert (code, told.splitlines()[-2:]) == (
        7,
        [
            "error: can't create demo.toml/out: a part of the path is a file, not a folder",
            "hint: choose another folder, or remove that file",
        ],
    )


def test_a_version_that_does_not_exist(builder: Builder) -> None:
    spec_of(builder, "six==99")
    code, told = refused_lock(builder)
    assert code == 3
    assert told.startswith(f"error: no solution for {LABEL}: ")
    assert "six==99" in told


def test_two_requirements_that_contradict_each_other(builder: Builder) -> None:
    spec_of(builder, "six==1.17.0", "six<1")
    code, told = refused_lock(builder)
    assert code == 3
    assert "six==1.17.0" in told
    assert "six<1" in told


def test_no_wheel_for_the_target_says_which_there_are(builder: Builder) -> None:
    make_wheel(builder.links[1], "lib", "1.0", tag="cp311-cp311-win_amd64")
    spec_of(builder, "lib==1.0")
    code, told = refused_lock(builder)
    assert code == 3
    assert told.startswith(f"error: no wheel for {LABEL}: Because lib==1.0 has no wheels")
    assert "win_amd64" in told


def test_cuda_in_a_cpu_bundle(builder: Builder) -> None:
    make_wheel(builder.links[1], "app", "1.0", requires=["nvidia-cublas-cu12"])
    make_wheel(builder.links[1], "nvidia-cublas-cu12", "12.0")
    spec_of(builder, "app")
    code, told = refused_lock(builder)
    assert code == 3
    lead = "error: target.accelerator is cpu, but the requirements lead to CUDA packages: nvidia-cublas-cu12 12.0 ("
    assert told.startswith(lead)


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class Broken(BaseHTTPRequestHandler):
    """An index that is broken."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_error(500)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's own name
        """Say nothing."""


@pytest.fixture
def broken_port() -> Iterator[int]:
    """The port of such an index."""
    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["dead", "broken"])
def test_an_index_that_can_not_be_reached(builder: Builder, kind: str, dead_port: int, broken_port: int) -> None:
    port = {"dead": dead_port, "broken": broken_port}[kind]
    url = f"http://me:secret@127.0.0.1:{port}/simple"
    variables = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": url, "UV_HTTP_RETRIES": "0"}
    online = replace(builder, links=(), variables=variables)
    spec_of(online, "six")
    code, told = refused_lock(online)
    assert code == 3, told
    assert told.startswith("error: an index can't be reached: ")
    assert f"127.0.0.1:{port}/simple/six/" in told
    assert told.endswith("hint: check the network, the proxy and `pip config list`\n")
    assert "secret" not in told


def test_a_wheel_that_is_gone_when_it_is_fetched(builder: Builder) -> None:
    spec_of(builder, more='[[model]]\nname = "m"\nsource = "wheel:no-such-model==1.0"\nadapter = "bge-m3"\n')
    make_serving_stubs(builder.links[1])
    code, told = refused_lock(builder)
    assert code == 3
    assert told.startswith("error: pip can't fetch: ")
    assert "no-such-model==1.0" in told


def make_serving_stubs(folder: Path) -> None:
    for name in ("numpy==1.26", "pyyaml==6", "safetensors==0.4.5", "starlette==0.41", "torch==2.13.0+cpu"):
        make_wheel(folder, *name.split("=="))
    for name in ("transformers==5.24.0", "uvicorn==0.32"):
        make_wheel(folder, *name.split("=="))


def _make_link(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").symlink_to("/etc/hostname")


def _make_config_less(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (os.rmdir, "/model is not a folder\nhint: relative paths start at the spec's folder\n"),
        (lambda _: None, "/model holds no files\nhint: check include and exclude\n"),
        (_make_config_less, "/model has no config.json\nhint: name the folder that holds the weights\n"),
        (_make_link, "source: weights.safetensors is a link out of the folder, to /etc/hostname\nhint: copy the"),
    ],
)
def test_a_model_folder_that_is_none(builder: Builder, prepare: Callable[[Path], None], message: str) -> None:
    (builder.folder / "model").mkdir()
    prepare(builder.folder / "model")
    spec_of(builder, more=MODEL)
    told = refused_everywhere(builder, "check")
    assert told.startswith("error: demo.toml: model 'm': source: ")
    assert message in told
    make_serving_stubs(builder.links[1])
    assert refused_lock(builder) == (2, told)


def test_pickles_that_can_not_be_converted(builder: Builder) -> None:
    (builder.folder / "model").mkdir()
    (builder.folder / "model/config.json").write_text("{}")
    (builder.folder / "model/tokenizer.pkl").write_bytes(b"\x80\x04N.")
    spec_of(builder, more=MODEL)
    make_serving_stubs(builder.links[1])
    code, told = refused_lock(builder)
    assert (code, told.splitlines()[0]) == (10, "error: demo.toml: model 'm': policy.pickle refuses tokenizer.pkl")


def test_a_lock_that_is_damaged(builder: Builder) -> None:
    spec_of(builder)
    (builder.folder / "demo.lock").write_text("{")
    code, told = builder.refused("build", "demo.toml", "--output", "out", "--unsigned")
    assert code == 2
    assert told.startswith("error: demo.lock: can't be read: ")
    assert told.endswith("\nhint: make it again: bundler lock SPEC\n")
    assert not (builder.folder / "out").exists()


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "error: key: no such key"),
        (b"", 4, "error: key: not an OpenSSH private key: "),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END", 4, "error: key: not an OpenSSH private key: "),
    ],
)
def test_a_key_that_is_none(builder: Builder, content: bytes | None, code: int, message: str) -> None:
    spec_of(builder)
    if content is not None:
        (builder.folder / "key").write_bytes(content)
        (builder.folder / "key").chmod(0o600)
    got, told = builder.refused("build", "demo.toml", "--output", "out", "--key", "key")
    assert got == code, told
    assert told.startswith(message)
    assert not (builder.folder / "out").exists()
    assert not (builder.folder / "demo.lock").exists(), "the key is looked at before anything is fetched"
