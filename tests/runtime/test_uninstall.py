"""``runtime uninstall``: everything of ours goes, what the operator put there stays and is named."""

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from bundler.contents.render import Subject, render_payload
from manifests.manifest import ModelEntry
from runtime.gc import SETTINGS_NAMES
from tests.factories import Key, tree_of
from tests.factories_closed import ClosedBundle, Host
from tests.factories_kill import Installer, clone


@pytest.fixture
def prefix(tmp_path: Path, installed: Path) -> Path:
    """A copy of a prefix where the first bundle is live, with the settings that an install there would have made."""
    prefix = clone(installed, tmp_path / "prefix")
    for path in (prefix / "etc").iterdir():
        path.write_bytes(path.read_bytes().replace(str(installed).encode(), str(prefix).encode()))
    return prefix


def test_nothing_is_left(prefix: Path, host: Host, first: ClosedBundle, second: ClosedBundle) -> None:
    assert Installer(host=host).run(second, prefix, "venv made").status == -9, "leaves an unfinished release"
    done = host.runtime(first.pyz, "uninstall", "--prefix", prefix, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["left"] == []
    assert document["freed"] > sum(entry.size for entry in first.manifest.files)
    assert not prefix.exists()


def test_what_is_foreign_stays_and_is_named(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    done = Installer(host=host).run(first, prefix)
    assert done.status == 0, done.words
    mine = {
        "etc/offline.env": b"CHANGED=1\n",
        "etc/revoked_keys": b"# none\n",
        "releases/notes.txt": b"a",
        f"releases/{done.release}/docs/mine.txt": b"b",
        "store/sha256/README": b"c",
        "var/logs/sealift.log": b"d",
        "top": b"e",
    }
    for name, data in mine.items():
        (prefix / name).write_bytes(data)
    removed = host.runtime(first.pyz, "uninstall", "--prefix", prefix, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert removed.stdout.splitlines()[1:] == [f"left: {prefix / name}" for name in sorted(mine)]
    assert tree_of(prefix) == mine


@pytest.fixture
def pinned(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> Path:
    """A prefix whose signers an operator confirmed, who also revoked keys and changed a setting."""
    prefix = tmp_path / "prefix"
    words = ("trust", "init", first.trust, "--prefix", prefix, "--fingerprint", closed_key.public.fingerprint)
    assert host.runtime(first.pyz, *words).returncode == 0
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--no-smoke")
    assert done.returncode == 0, done.stderr
    (prefix / "etc/revoked_keys").write_bytes(b"# none\n")
    (prefix / "etc/offline.env").write_bytes(b"CHANGED=1\n")
    (prefix / "etc/mine.conf").write_bytes(b"x")
    (prefix / "var/logs/sealift.log").write_bytes(b"d")
    return prefix


def test_what_the_operator_decided_stays(pinned: Path, host: Host, first: ClosedBundle) -> None:
    signers = (pinned / "etc/allowed_signers").read_bytes()
    removed = host.runtime(first.pyz, "uninstall", "--prefix", pinned, "--yes", "--json")
    assert removed.returncode == 0, removed.stderr
    left = {
        "etc/allowed_signers": signers,
        "etc/mine.conf": b"x",
        "etc/offline.env": b"CHANGED=1\n",
        "etc/revoked_keys": b"# none\n",
        "var/logs/sealift.log": b"d",
    }
    assert json.loads(removed.stdout)["left"] == list(left)
    assert tree_of(pinned) == left
    again = host.runtime(first.pyz, "install", first.tar, "--prefix", pinned, "--no-smoke")
    assert again.returncode == 0, "the signers are still those that were confirmed"


def test_purge_takes_it_too(pinned: Path, host: Host, first: ClosedBundle) -> None:
    removed = host.runtime(first.pyz, "uninstall", "--prefix", pinned, "--yes", "--purge", "--json")
    assert (removed.returncode, json.loads(removed.stdout)["left"]) == (0, ["etc/mine.conf"]), removed.stderr
    assert tree_of(pinned) == {"etc/mine.conf": b"x"}


def test_purge_after_an_uninstall(pinned: Path, host: Host, first: ClosedBundle) -> None:
    words = ("uninstall", "--prefix", pinned, "--yes")
    assert host.runtime(first.pyz, *words).returncode == 0
    assert host.runtime(first.pyz, *words).returncode == 2, "nothing is installed"
    purged = host.runtime(first.pyz, *words, "--purge", "--json")
    assert purged.returncode == 0, purged.stderr
    assert json.loads(purged.stdout)["left"] == ["etc/mine.conf"]
    assert tree_of(pinned) == {"etc/mine.conf": b"x"}
    assert host.runtime(first.pyz, *words, "--purge").returncode == 2


def purge(host: Host, bundle: ClosedBundle, prefix: Path) -> "subprocess.CompletedProcess[str]":
    return host.runtime(bundle.pyz, "uninstall", "--prefix", prefix, "--yes", "--purge", "--json")


def test_purge_takes_what_a_release_brought_that_is_gone(prefix: Path, host: Host, first: ClosedBundle) -> None:
    """A service of an earlier bundle's, that the one which is live has no use for; and what a crash left of a write."""
    (prefix / "etc/sealift.service").write_bytes(b"# of a bundle with models\n")
    (prefix / "etc/.offline.env.7.7.partial").write_bytes(b"half")
    (prefix / "etc/mine.service").write_bytes(b"x")
    kept = clone(prefix, prefix.with_name("kept"))
    done = host.runtime(first.pyz, "uninstall", "--prefix", kept, "--yes", "--json")
    left = json.loads(done.stdout)["left"]
    assert "etc/sealift.service" in left, "it may have been changed"
    assert "etc/.offline.env.7.7.partial" not in left
    done = purge(host, first, prefix)
    assert (done.returncode, json.loads(done.stdout)["left"]) == (0, ["etc/mine.service"]), done.stderr
    assert tree_of(prefix) == {"etc/mine.service": b"x"}


@pytest.mark.parametrize(
    ("name", "content", "ours"),
    [
        ("sealift.service", b"[Unit]\n", True),
        ("offline.env", b"# `runtime launch` reads them for the server it\nX=1\n", True),
        ("launch.sh", b"#!/bin/sh\nexec java -jar app.jar\n", False),
        ("offline.env", b"X=1\n", False),
    ],
)
def test_purge_of_what_an_uninstall_left(
    tmp_path: Path, host: Host, first: ClosedBundle, *, name: str, content: bytes, ours: bool
) -> None:
    (tmp_path / "prefix/etc").mkdir(parents=True)
    (tmp_path / "prefix/etc" / name).write_bytes(content)
    done = purge(host, first, tmp_path / "prefix")
    if ours:
        assert (done.returncode, json.loads(done.stdout)["left"]) == (0, []), done.stderr
        assert not (tmp_path / "prefix").exists()
    else:
        assert done.returncode == 2
        assert f"error: {tmp_path}/prefix: nothing is installed here" in done.stderr
        assert tree_of(tmp_path / "prefix") == {f"etc/{name}": content}


def test_every_setting_that_an_install_writes_is_known_by_name(first: ClosedBundle) -> None:
    """What a bundle with models renders into ``config/`` and an install copies to ``etc/``."""
    model = ModelEntry(name="m", adapter="causal-lm", path="models/m", format="safetensors", origin="dir")
    payload = render_payload(Subject(name="demo", version="1.0.0", target=first.manifest.target, models=(model,)))
    copied = {path.rpartition("/")[2] for path in payload if path.startswith("config/") and not path.endswith(".yaml")}
    assert copied == set(SETTINGS_NAMES)


def test_a_signers_file_that_no_install_writes_stays(prefix: Path, host: Host, first: ClosedBundle) -> None:
    (prefix / "etc/allowed_signers").write_bytes(b"\xff")
    removed = host.runtime(first.pyz, "uninstall", "--prefix", prefix, "--yes", "--json")
    assert (removed.returncode, json.loads(removed.stdout)["left"]) == (0, ["etc/allowed_signers"])


@pytest.mark.parametrize("lock", ["release", "use.lock", "install.lock"])
def test_refused_while_in_use(prefix: Path, host: Host, first: ClosedBundle, lock: str) -> None:
    path = (prefix / "current").resolve() if lock == "release" else prefix / "var" / lock
    descriptor = os.open(path, os.O_RDONLY | (0 if lock == "release" else os.O_CREAT))
    fcntl.flock(descriptor, fcntl.LOCK_EX if lock == "install.lock" else fcntl.LOCK_SH)
    before = tree_of(prefix)
    try:
        done = host.runtime(first.pyz, "uninstall", "--prefix", prefix, "--yes")
    finally:
        os.close(descriptor)
    assert done.returncode == 7
    words = {
        "release": f"{prefix}: release {path.name} is in use",
        "use.lock": f"{prefix}: is in use by a server",
        "install.lock": f"{prefix}: in use by another runtime",
    }
    assert f"error: {words[lock]}" in done.stderr
    assert tree_of(prefix) == before


def test_it_asks(prefix: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "uninstall", "--prefix", prefix)
    assert done.returncode == 2
    assert done.stderr == "error: uninstall asks before it removes anything\nhint: without a terminal: --yes\n"
    assert (prefix / "current").is_symlink()


def test_an_answer_that_is_not_yes(prefix: Path, host: Host, first: ClosedBundle) -> None:
    words = [str(word) for word in host.runtime_words(first.pyz, "uninstall", "--prefix", prefix)]
    code = (
        "import os, pty, sys\n"
        "pid, terminal = pty.fork()\n"
        "if pid == 0: os.execv(sys.argv[2], sys.argv[2:])\n"
        "os.write(terminal, sys.argv[1].encode() + b'\\n')\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    refused = host.run(host.python, "-c", code, "no", *words)
    assert refused.returncode == 2
    assert (prefix / "current").is_symlink()
    assert host.run(host.python, "-c", code, "yes", *words).returncode == 0
    assert not prefix.exists()


def test_nothing_to_uninstall(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"x")
    done = host.runtime(first.pyz, "uninstall", "--prefix", tmp_path / "other", "--yes")
    assert done.returncode == 2
    assert f"error: {tmp_path}/other: nothing is installed here" in done.stderr
    assert tree_of(tmp_path / "other") == {"file": b"x"}
