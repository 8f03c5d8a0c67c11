"""API keys and the log, without a server."""

import base64
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.errors import UsageError
from runtime.server.keys import ApiKeys
from runtime.server.logs import FILE_BYTES, QUIET, JsonFormatter, make_handlers, quiet_third_parties

KEY = "0123456789abcdef"


def keys_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text, encoding="utf-8")
    return path


def test_bearer_and_basic(tmp_path: Path) -> None:
    keys = ApiKeys(keys_file(tmp_path, f"# one of ours\n\n{KEY}\n  another-key-of-ours  \n"))
    assert len(keys) == 2
    basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
    for good in (f"Bearer {KEY}", f"bearer {KEY}", "Bearer another-key-of-ours", f"Basic {basic}"):
        assert keys.admits(good)
    for bad in (
        None,
        "",
        KEY,
        "Bearer",
        f"Bearer {KEY}x",
        "Bearer # one of ours",
        "Basic !",
        "Bearer \udcff",
        "Bearer 한",
    ):
        assert not keys.admits(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no API key"),
        ("# only words\n", "holds no API key"),
        ("short\n", "line 1: expected a key of at least 16 printable ASCII characters, no spaces"),
        (f"{KEY}\nwith a space in the middle\n", "line 2: expected a key of at least 16 printable ASCII characters"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ApiKeys(keys_file(tmp_path, text))
    assert message in caught.value.message
    assert KEY not in caught.value.message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"keys: the API keys can't be read: No such file or directory$"):
        ApiKeys(tmp_path / "keys")


def test_reload_keeps_the_old_keys_where_the_new_file_is_wrong(tmp_path: Path) -> None:
    path = keys_file(tmp_path, KEY)
    keys = ApiKeys(path)
    path.write_text("short")
    with pytest.raises(UsageError):
        keys.reload()
    assert keys.admits(f"Bearer {KEY}")
    path.write_text("fedcba9876543210")
    keys.reload()
    assert not keys.admits(f"Bearer {KEY}")
    assert keys.admits("Bearer fedcba9876543210")


def test_who_may_read_the_file(tmp_path: Path) -> None:
    path = keys_file(tmp_path, KEY)
    path.chmod(0o640)
    assert ApiKeys(path).is_exposed
    path.chmod(0o600)
    assert not ApiKeys(path).is_exposed


def logged(handlers: list[logging.Handler], text: str, *, trace: bool = False) -> None:
    logger = logging.Logger("runtime.test")  # noqa: LOG001 - one that nobody else sees
    for handler in handlers:
        logger.addHandler(handler)
    try:
        raise ValueError("why")
    except ValueError:
        logger.error("%s", text, exc_info=trace)
    for handler in handlers:
        handler.close()


def test_a_console_of_another_encoding_gets_escapes(tmp_path: Path) -> None:
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding="cp949")
    handlers, problem = make_handlers(console, tmp_path / "logs" / "server.log", as_json=False)
    logged(handlers, "서울 \U0001f6a2")
    console.flush()
    assert problem is None
    assert raw.getvalue().decode("cp949").endswith("ERROR runtime.test: 서울 \\U0001f6a2\n")
    assert (tmp_path / "logs/server.log").read_text(encoding="utf-8").endswith("서울 \U0001f6a2\n")


def test_json_lines_with_a_traceback() -> None:
    console = io.StringIO()
    handlers, _ = make_handlers(console, None, as_json=True)
    logged(handlers, "two\nlines", trace=True)
    (line,) = console.getvalue().splitlines()
    document = json.loads(line)
    assert (document["level"], document["logger"], document["message"]) == ("error", "runtime.test", "two\nlines")
    assert document["time"].endswith("Z")
    assert document["traceback"].endswith("ValueError: why")
    assert isinstance(handlers[0].formatter, JsonFormatter)


def test_the_file_rotates(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"x" * FILE_BYTES)
    handlers, _ = make_handlers(io.StringIO(), path, as_json=False)
    logged(handlers, "fresh")
    assert path.read_text(encoding="utf-8").endswith("fresh\n")
    assert path.stat().st_size < 200
    assert (tmp_path / "server.log.1").stat().st_size == FILE_BYTES


def test_a_file_that_cannot_be_written_is_told_and_the_console_stays(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    handlers, problem = make_handlers(io.StringIO(), tmp_path / "logs" / "server.log", as_json=False)
    assert problem == f"no log file: {tmp_path / 'logs' / 'server.log'}: File exists"
    assert len(handlers) == 1


@pytest.fixture
def levels() -> Iterator[None]:
    """Put the levels of third parties back afterwards."""
    before = {name: logging.getLogger(name).level for name in QUIET}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("levels")
def test_libraries_are_quiet_unless_debugging() -> None:
    quiet_third_parties(logging.INFO)
    assert logging.getLogger("httpx").level == logging.WARNING
    quiet_third_parties(logging.ERROR)
    assert logging.getLogger("httpx").level == logging.ERROR
    quiet_third_parties(logging.DEBUG)
    assert logging.getLogger("httpx").level == logging.INFO
