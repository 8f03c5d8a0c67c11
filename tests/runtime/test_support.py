"""The support file: what is in it, what must never be, and a summary that survives being typed by hand."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runtime.hostfacts import Host as FactsHost
from runtime.layout import Prefix
from runtime.redaction import Redactor
from runtime.support import check_summary, line_check, support_text
from tests.factories_closed import ClosedBundle, Host
from tests.factories_kill import clone

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HF_TOKEN=hf_abcdefghijklmnop and more", "HF_TOKEN=<secret> and more"),
        ("got hf_abcdefghijklmnop", "got <secret>"),
        ('{"api_key": "s3 cr3t", "n": 1}', '{"api_key": <secret>, "n": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer <secret>"),
        ("http://user:pw@proxy/x", "http://<secret>@proxy/x"),
        ("password = 'a b c', next", "password = <secret>, next"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\nafter", "<secret>\nafter"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ kim", "<secret> <user-1>"),
        ("blob dGhpcyBpcyBhIHNlY3JldCB0aGF0IGlzIGxvbmcgZW5vdWdo.", "blob <secret>."),
        ("from 10.1.2.3 and 10.1.2.4, again 10.1.2.3", "from <ip-1> and <ip-2>, again <ip-1>"),
        ("fe80::1ff:fe23:4567:890a and ::1 and 127.0.0.1 at 12:34:56", "<ip-1> and ::1 and 127.0.0.1 at 12:34:56"),
        ("mac 52:54:00:12:34:56", "mac <mac-1>"),
        ("kim.lee@corp.example signed", "<mail-1> signed"),
        ("/home/park/models and /Users/park/x", "/home/<user-1>/models and /Users/<user-1>/x"),
        ("rag01.corp.example is rag01", "<host-1> is <host-2>"),
        ("kim ran it, kimchi did not", "<user-1> ran it, kimchi did not"),
        (f"answered '{'x' * 80}'", "answered <80 characters>"),
        (f"digest {'0af1' * 16} stays", f"digest {'0af1' * 16} stays"),
        (
            "SHA256:8ZCuVRkvejTusxtyIn0cmdknpX24x3ZTBvaclwcO8tg stays",
            "SHA256:8ZCuVRkvejTusxtyIn0cmdknpX24x3ZTBvaclwcO8tg stays",
        ),
        ("root and driver 560.28.03 stay", "root and driver 560.28.03 stay"),
    ],
)
def test_redaction(text: str, expected: str) -> None:
    redactor = Redactor(users=("kim", "root", ""), hosts=("rag01.corp.example", "rag01", "localhost"))
    assert redactor.redact(text) == expected
    assert redactor.redact(expected) == expected, "twice is as good as once"


@pytest.fixture
def used(tmp_path: Path, installed: Path) -> Path:
    """A prefix with a history, and with secrets in its logs and settings."""
    prefix = clone(installed, tmp_path / "prefix")
    entry = {
        "detail": "files: 1 findings",
        "event": "verify",
        "exit_code": 5,
        "outcome": "failed",
        "when": "2026-05-31T00:00:00Z",
    }
    entry |= {"who": {"name": "hyunwoo", "sudo_user": "minji", "uid": 1000}}
    with (prefix / "var/audit.jsonl").open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    log = [f"2026-05-31 INFO line {number}" for number in range(300)]
    log += ["GET /v1 from 10.9.8.7 by minji, Authorization: Bearer topsecret", f"model m: answered '{'비밀' * 60}'"]
    (prefix / "var/logs/sealift.log").write_text("\n".join(log))
    (prefix / "etc/offline.env").write_text("SEALIFT_API_KEYS=topsecret\n")
    return prefix


def facts(tmp_path: Path) -> FactsHost:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/hostname").write_text("gpu-node-7\n")
    (tmp_path / "root/etc/resolv.conf").write_text("search secret-corp.example\nnameserver 10.0.0.53\n")
    return FactsHost(root=tmp_path / "root")


def test_what_is_asked_for_is_there_and_what_is_secret_is_not(tmp_path: Path, used: Path) -> None:
    text = support_text(Prefix(path=used), now=NOW, host=facts(tmp_path)).text
    for secret in ("topsecret", "hyunwoo", "minji", "10.9.8.7", "10.0.0.53", "release@example.com", "비밀비밀"):
        assert secret not in text, secret
    titles = [line[3:] for line in text.splitlines() if line.startswith("== ")]
    assert titles == [
        *("summary", "versions", "host", "preflight", "releases", "changed by the operator", "last verify", "disk"),
        *("limits", "audit log, last 100 lines", "releases.log, last 200 lines", "sealift.log, last 200 lines"),
    ]
    receipt = json.loads((used / "current/receipt.json").read_text())
    assert f"digest {receipt['digest']}, installed {receipt['installed']}" in text
    assert "\netc/offline.env: SEALIFT_API_KEYS\n" in text
    assert "INFO line 102\n" in text
    assert "INFO line 101\n" not in text, "the last 200 lines"
    assert "inodes free" in text
    assert "nofile: " in text


def test_the_summary_is_short_and_checks_itself(tmp_path: Path, used: Path) -> None:
    found = support_text(Prefix(path=used), now=NOW, host=facts(tmp_path))
    assert len(found.summary) <= 12
    assert max(map(len, found.summary)) <= 100
    assert found.summary[9].startswith("S10 verify 2026-05-31T00:00:00Z exit 5 files: 1 findings #")
    assert check_summary("\n".join(found.summary)) == []
    assert check_summary("\n\n".join(line.replace(" #", "   #") for line in found.summary)) == []


def test_a_mistyped_summary_says_where() -> None:
    rows = [f"S{number} some words {number} #{line_check(f'S{number} some words {number}')}" for number in (1, 2, 3)]
    assert check_summary("\n".join(rows)) == []
    wrong = rows[1].replace("words", "wrods")
    assert check_summary("\n".join([rows[0], wrong, rows[2]])) == [
        f"S2: is mistyped, its digits {rows[1][-4:]} don't fit"
    ]
    assert check_summary("\n".join([rows[0], rows[2]])) == ["line 2: S2 is missing, got S3"]
    assert check_summary("what") == ["line 1: expected S1 ... #xxxx, got 'what'"]
    assert check_summary("") == ["no line at all"]


def test_the_command(tmp_path: Path, installed: Path, host: Host, first: ClosedBundle) -> None:
    output = tmp_path / "support.txt"
    done = host.runtime(first.pyz, "support", "--prefix", installed, "--output", output)
    assert done.returncode == 0, done.stderr
    *summary, written = done.stdout.splitlines()
    assert written == f"written: {output}"
    assert "\n".join(summary) in output.read_text()
    typed = tmp_path / "typed.txt"
    typed.write_text("\n".join(summary))
    good = host.runtime(first.pyz, "support", "--check", typed)
    assert (good.returncode, good.stdout) == (0, "every line is as it was printed\n")
    typed.write_text("\n".join(summary).replace("sealift", "saelift"))
    bad = host.runtime(first.pyz, "support", "--check", typed)
    assert bad.returncode == 5
    assert bad.stdout.startswith("S1: is mistyped")
    assert host.runtime(first.pyz, "support").returncode == 2


def test_a_prefix_of_nothing(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "support", "--prefix", tmp_path / "none", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary[5].startswith("S6 release none #")
    assert not (tmp_path / "none").exists()
