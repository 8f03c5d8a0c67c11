"""A private index's login, from wherever the user keeps it, is used and never written or said."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import pytest

from bundler.packages.pipconfig import redact
from tests.factories_index import SimpleIndex, by_project, simple_index
from tests.factories_sdists import make_project, make_sdist, make_uv_wheel
from tests.factories_wheels import make_wheel

USER: Final = "builder"
PASSWORD: Final = "s3cr3t-Pa55/w+rd"  # noqa: S105 # of the index that this test runs
FORMS: Final = (
    PASSWORD.encode(),
    quote(PASSWORD, safe="").encode(),
    base64.b64encode(f"{USER}:{PASSWORD}".encode()),
    b"wr0ng-Pa55",
)
SPEC: Final = """
[bundle]
name = "private"
version = "1.0"
[target]
platform = "x86_64-manylinux_2_28"
python = "3.11"
[packages]
requirements = ["lib", "built"]
build-from-source = ["built"]
"""
ROOT: Final = Path(__file__).parents[3]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SimpleIndex]:
    """Yield an index behind a login with a wheel, uv's own wheel, and a package that is an sdist alone."""
    links = tmp_path / "links"
    make_uv_wheel(links)
    make_wheel(links, "lib", "1.0")
    make_sdist(links, make_project(tmp_path / "src", "built", "1.0"), "built", "1.0")
    with simple_index(by_project(links), auth=(USER, PASSWORD)) as served:
        yield served


def configure(way: str, home: Path, index: SimpleIndex, login: str) -> Mapping[str, str]:
    """Write the user's configuration, and return the variables that it takes."""
    host = urlsplit(index.url).netloc
    with_login = index.url.replace("://", f"://{USER}:{login}@")
    home.mkdir(exist_ok=True)
    if way == "PIP_INDEX_URL":
        return {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": with_login}
    if way == "pip.conf":
        (home / "pip.conf").write_text(f"[global]\nindex-url = {with_login}\n")
        return {"PIP_CONFIG_FILE": str(home / "pip.conf")}
    (home / ".netrc").write_text(f"machine {host.partition(':')[0]}\nlogin {USER}\npassword {PASSWORD}\n")
    (home / ".netrc").chmod(0o600)
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.url, "NETRC": str(home / ".netrc")}


def bundler(folder: Path, variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    base = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "XDG_", "HTTP"))}
    own = {
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "UV_CACHE_DIR": str(folder / "uv"),
        "PIP_NO_CACHE_DIR": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "bundler.cli", *arguments]
    return subprocess.run(command, env={**base, **own, **variables}, cwd=folder, capture_output=True, check=False)


def leaks(folder: Path, *said: bytes) -> list[str]:
    """Return every file below ``folder``, and every text, that holds a form of the secret."""
    files = [
        path for path in folder.rglob("*") if path.is_file() and "home" not in path.parts and "uv" not in path.parts
    ]
    assert len(files) > 3
    found = [str(path) for path in files if any(form in path.read_bytes() for form in FORMS)]
    return found + [repr(text) for text in said if any(form in text for form in FORMS)]


@pytest.mark.parametrize(
    "way", ["pip.conf", *(pytest.param(way, marks=pytest.mark.slow) for way in ("netrc", "PIP_INDEX_URL"))]
)
def test_a_login_is_used_and_never_told(tmp_path: Path, index: SimpleIndex, way: str) -> None:
    (tmp_path / "private.toml").write_text(SPEC)
    variables = configure(way, tmp_path / "home", index, quote(PASSWORD, safe=""))
    locked = bundler(tmp_path, variables, "lock", "private.toml", "--json")
    assert locked.returncode == 0, locked.stderr.decode()
    build = ("build", "private.toml", "--output", "out", "--unsigned", "--no-rehearsal")
    built = bundler(tmp_path, variables, *build)
    assert built.returncode == 0, built.stderr.decode()
    assert (tmp_path / "out" / "private-1.0-x86_64-manylinux_2_28-cp311-cpu.bundle.tar").is_file()
    lock = (tmp_path / "private.lock").read_text()
    assert f'"source": "index http://{urlsplit(index.url).netloc}/files/lib-1.0-py3-none-any.whl"' in lock
    assert '"source": "built built-1.0.tar.gz"' in lock
    said = (locked.stdout, locked.stderr, built.stdout, built.stderr)
    assert leaks(tmp_path, *said) == []
    assert {"lib-1.0-py3-none-any.whl", "built-1.0.tar.gz"} <= index.downloads


@pytest.mark.parametrize("way", [pytest.param("pip.conf", marks=pytest.mark.slow), "PIP_INDEX_URL"])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_failure_does_not_tell_it_either(tmp_path: Path, index: SimpleIndex, way: str, *, as_json: bool) -> None:
    flags = ("--json",) if as_json else ()
    (tmp_path / "private.toml").write_text(SPEC.replace('"lib"', '"lib", "absent"'))
    (tmp_path / "other.toml").write_text(SPEC)
    variables = configure(way, tmp_path / "home", index, quote(PASSWORD, safe=""))
    missing = bundler(tmp_path, variables, "lock", "private.toml", *flags)
    assert missing.returncode == 3
    assert b"absent" in missing.stderr
    wrong = configure(way, tmp_path / "home", index, "wr0ng-Pa55")
    refused = bundler(tmp_path, {**wrong, "UV_CACHE_DIR": str(tmp_path / "uv" / "2")}, "lock", "other.toml", *flags)
    assert refused.returncode == 3
    assert refused.stderr.startswith(b"... resolve\nerror: ")
    assert leaks(tmp_path, missing.stdout, missing.stderr, refused.stdout, refused.stderr) == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at http://me:hunter2@host/simple, x@y", "at http://***@host/simple, x@y"),
        ("value 'http://me:hunter2/a+b@host:9/simple' for", "value 'http://***@host:9/simple' for"),
        ("value 'http://me:hunter2 a@host/simple' for", "value 'http://***@host/simple' for"),
        ("http://me:hunter2@b@host/simple", "http://***@host/simple"),
        ("http://host/simple/lib/?token=hunter2: refused", "http://host/simple/lib/?***: refused"),
        ("file:///data/a@b and http://host/simple", "file:///data/a@b and http://host/simple"),
        ("'hunt' in 'http://host/a' and 'me@host'", "'hunt' in 'http://host/a' and 'me@host'"),
    ],
)
def test_a_login_is_taken_out_however_it_is_written(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_a_url_that_no_one_can_parse_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "private.toml").write_text(SPEC)
    variables = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://{USER}:{PASSWORD}@127.0.0.1:9/simple"}
    done = bundler(tmp_path, variables, "lock", "private.toml")
    assert done.returncode == 3
    assert b"http://***@127.0.0.1:9/simple" in done.stderr
    assert not any(form in done.stdout + done.stderr for form in FORMS)


def test_the_search_can_find_something(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / str(number)).write_bytes(b"x")
    (tmp_path / "3").write_bytes(b"..." + FORMS[2])
    assert leaks(tmp_path, b"a", FORMS[0]) == [str(tmp_path / "3"), repr(FORMS[0])]
