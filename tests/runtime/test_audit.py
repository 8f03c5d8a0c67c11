"""The audit log: one line for each command that changes or proves something, whatever its end, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.audit import AuditEntry, append_audit, overrides_of, read_audit
from runtime.layout import Prefix
from tests.factories import Key, is_root
from tests.factories_cli import ROOT
from tests.factories_closed import ClosedBundle, Host

KEYS = {
    *("detail", "digest", "event", "exit_code", "options", "outcome", "overrides", "pid", "prefix", "release"),
    *("sealift", "trust", "when", "who"),
}


@pytest.fixture
def prefix(tmp_path: Path, host: Host, first: ClosedBundle) -> Path:
    """A prefix where the first bundle is live and the log is empty."""
    prefix = tmp_path / "prefix"
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust, "--no-smoke")
    assert done.returncode == 0, done.stderr
    (prefix / "var/audit.jsonl").unlink()
    return prefix


def lines_of(prefix: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (prefix / "var/audit.jsonl").read_text().splitlines()]
    assert all(entry.keys() == KEYS for entry in entries)
    return entries


def told(prefix: Path) -> list[tuple[str, str, int | None]]:
    return [(entry["event"], entry["outcome"], entry["exit_code"]) for entry in lines_of(prefix)]


def test_an_install_says_who_what_and_by_whose_word(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust, "--no-smoke")
    assert done.returncode == 0, done.stderr
    decided, ended = lines_of(prefix)
    release = (prefix / "current").readlink().name
    assert (decided["event"], decided["outcome"], decided["detail"]) == ("install", "decided", release)
    digest = json.loads((prefix / "current/receipt.json").read_text())["digest"]
    assert (ended["release"], ended["digest"], ended["exit_code"], ended["outcome"]) == (release, digest, 0, "done")
    assert ended["trust"].startswith(f"{first.trust} sha256:")
    assert ended["options"] == ["--no-smoke"]
    assert ended["who"]["uid"] == os.geteuid()
    assert ended["overrides"] == []


def test_what_is_refused_is_told_too(prefix: Path, host: Host, first: ClosedBundle, second: ClosedBundle) -> None:
    words = ("--prefix", prefix, "--trust", first.trust)
    assert host.runtime(first.pyz, "install", second.tar, *words, "--no-smoke").returncode == 0
    assert host.runtime(first.pyz, "install", first.tar, *words).returncode == 10
    assert host.runtime(first.pyz, "rollback", "--prefix", prefix).returncode == 0
    assert host.runtime(first.pyz, "gc", "--prefix", prefix).returncode == 0
    assert told(prefix) == [
        ("install", "decided", None),
        ("install", "done", 0),
        ("install", "failed", 10),
        ("rollback", "decided", None),
        ("rollback", "done", 0),
        ("gc", "done", 0),
    ]
    refused = lines_of(prefix)[2]
    assert refused["detail"].startswith("bundle 1.0.0 (sequence ")
    assert refused["digest"] == json.loads((prefix / "current/receipt.json").read_text())["digest"], "what was tried"


def test_a_verify_with_findings(prefix: Path, host: Host, first: ClosedBundle) -> None:
    (prefix / "current/docs/more").write_bytes(b"")
    assert host.runtime(first.pyz, "verify", "--prefix", prefix, "--quick").returncode == 5
    (entry,) = lines_of(prefix)
    assert (entry["outcome"], entry["exit_code"], entry["detail"]) == ("failed", 5, "files: 1 findings")
    assert (entry["options"], entry["trust"].split(" ")[0]) == (["--quick"], f"{prefix}/etc/allowed_signers")


def test_a_launch_is_told_before_it_begins(prefix: Path, host: Host, first: ClosedBundle) -> None:
    assert host.runtime(first.pyz, "launch", "--prefix", prefix, "--port", "8123").returncode == 9
    assert told(prefix) == [("launch", "started", None), ("launch", "failed", 9)]
    assert lines_of(prefix)[0]["options"] == ["--host 127.0.0.1", "--port 8123"]


def test_changes_of_trust(prefix: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    words = ("trust", "init", first.trust, "--prefix", prefix)
    assert host.runtime(first.pyz, *words).returncode == 2, "nobody confirmed it"
    fingerprint = closed_key.public.fingerprint
    assert host.runtime(first.pyz, *words, "--fingerprint", fingerprint).returncode == 0
    assert host.runtime(first.pyz, "trust", "list", "--prefix", prefix).returncode == 0
    assert told(prefix) == [("trust init", "failed", 2), ("trust", "decided", None), ("trust init", "done", 0)]
    assert lines_of(prefix)[2]["options"] == [f"--fingerprint {fingerprint}"]


def test_overrides_are_named_and_their_values_are_not(prefix: Path, host: Host, first: ClosedBundle) -> None:
    (prefix / "etc/offline.env").write_text("LOG_LEVEL=debug\nSEALIFT_API_KEY=s3cr3t\n")
    (prefix / "etc/own.conf").write_text("x")
    assert host.runtime(first.pyz, "verify", "--prefix", prefix, "--quick").returncode == 0
    (entry,) = lines_of(prefix)
    assert entry["overrides"] == [
        "etc/offline.env: LOG_LEVEL",
        "etc/offline.env: SEALIFT_API_KEY",
        "etc/own.conf: not of this release",
    ]
    assert "s3cr3t" not in (prefix / "var/audit.jsonl").read_text()


def test_who_called_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "var").mkdir()
    monkeypatch.setenv("SUDO_USER", "kim")
    assert append_audit(Prefix(path=tmp_path), AuditEntry(event="gc", outcome="done")) == ""
    assert lines_of(tmp_path)[0]["who"]["sudo_user"] == "kim"


def test_lines_of_many_writers_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    code = (
        "import sys; from pathlib import Path; from runtime.layout import Prefix\n"
        "from runtime.audit import AuditEntry, append_audit\n"
        "for n in range(100): append_audit(Prefix(path=Path(sys.argv[1])), AuditEntry(event='gc', outcome='done',"
        " detail=f'{sys.argv[2]} {n} ' + 'x' * 400))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(who)], cwd=ROOT) for who in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = sorted(tuple(map(int, entry["detail"].split()[:2])) for entry in lines_of(tmp_path))
    assert found == [(who, number) for who in range(4) for number in range(100)]


@pytest.mark.skipif(not is_root(), reason="needs root: a read-only mount")
def test_a_read_only_prefix_is_a_warning(prefix: Path, host: Host, first: ClosedBundle) -> None:
    subprocess.run(["/bin/mount", "--bind", str(prefix), str(prefix)], check=True)
    try:
        subprocess.run(["/bin/mount", "-o", "remount,bind,ro", str(prefix)], check=True)
        done = host.runtime(first.pyz, "verify", "--prefix", prefix, "--quick")
    finally:
        subprocess.run(["/bin/umount", str(prefix)], check=True)
    assert done.returncode == 0, done.stderr
    words = f"warning: this was not added to the audit log: {prefix}/var/audit.jsonl: read-only file system\n"
    assert done.stderr.endswith(words)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var/audit.jsonl").symlink_to(tmp_path / "elsewhere")
    problem = append_audit(Prefix(path=tmp_path), AuditEntry(event="gc", outcome="done"))
    assert problem == f"{tmp_path}/var/audit.jsonl: too many levels of symbolic links"
    assert not (tmp_path / "elsewhere").exists()


def test_no_prefix_is_made_for_a_log(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "verify", "--prefix", tmp_path / "none", "--quick")
    assert done.returncode == 2
    assert not (tmp_path / "none").exists()
    assert read_audit(Prefix(path=tmp_path / "none"), 5) == []
    assert overrides_of(Prefix(path=tmp_path / "none")) == ()


def test_uninstall_takes_it_and_a_refused_one_is_told(prefix: Path, host: Host, first: ClosedBundle) -> None:
    assert host.runtime(first.pyz, "uninstall", "--prefix", prefix).returncode == 2, "it asks"
    assert told(prefix) == [("uninstall", "failed", 2)]
    (prefix / "var/logs/mine.log").write_text("x")
    assert host.runtime(first.pyz, "uninstall", "--prefix", prefix, "--yes").returncode == 0
    assert not (prefix / "var/audit.jsonl").exists()
    shutil.rmtree(prefix)
