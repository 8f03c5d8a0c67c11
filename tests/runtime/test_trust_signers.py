"""The signers that a prefix keeps: confirmed by hand, never silently; what ``install`` does without ``--trust``."""

import json
import subprocess
from pathlib import Path

import pytest

from manifests.files import locked
from runtime.layout import Prefix
from runtime.trust import PIN_LINE, pinned_text
from tests.factories import Key, tree_of
from tests.factories_closed import ClosedBundle, Host, program
from tests.factories_trust import at_terminal, kept, log_of, pin, shown, trust
from tests.manifests.test_sshsig import Token


def test_init_keeps_what_was_confirmed(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    prefix = tmp_path / "new" / "prefix"
    done = trust(host, first, "init", first.trust, "--prefix", prefix, "--fingerprint", closed_key.public.fingerprint)
    assert (done.returncode, done.stdout) == (0, f"{shown(closed_key)}trusted\n")
    assert done.stderr == shown(closed_key)
    assert kept(prefix) == f"{PIN_LINE}\n{first.trust.read_text()}"
    assert log_of(prefix) == [f"trust init {closed_key.identity} {closed_key.public.fingerprint}"]
    listed = trust(host, first, "list", "--prefix", prefix, "--json")
    assert json.loads(listed.stdout) == {
        "prefix": str(prefix),
        "signers": [
            {
                "fingerprint": closed_key.public.fingerprint,
                "namespaces": ["sealift-bundle-v1"],
                "principals": "release@example.com",
                "revoked": False,
                "type": "ssh-ed25519",
                "valid_after": None,
                "valid_before": None,
            }
        ],
    }


def test_fingerprints_are_shown_as_ssh_keygen_does(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key
) -> None:
    (tmp_path / "key.pub").write_text(f"{closed_key.public.line} {closed_key.identity}\n")
    (tmp_path / "token.pub").write_text(f"{Token().line} who\n")
    stock = "".join(
        subprocess.run(
            [program("ssh-keygen"), "-l", "-f", str(tmp_path / name)], capture_output=True, text=True, check=True
        ).stdout
        for name in ("key.pub", "token.pub")
    )
    (tmp_path / "signers").write_text(f"{closed_key.allowed_signers.read_text()}who {Token().line}\n")
    done = trust(host, first, "init", tmp_path / "signers", "--prefix", tmp_path / "prefix")
    assert done.returncode == 2
    assert done.stderr.startswith(stock)


def test_nothing_is_trusted_silently(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    done = trust(host, first, "init", first.trust, "--prefix", tmp_path / "prefix")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{shown(closed_key)}"
        f"error: {first.trust}: nobody confirmed these fingerprints; nothing is trusted silently\n"
        "hint: the builder tells you by another way than the medium: --fingerprint SHA256:..., once for each key\n"
    )
    assert not (tmp_path / "prefix").exists()


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("y\n", 4), ("\n", 4), ("no\n", 4), ("\x04", 4)])
def test_a_terminal_is_asked(*, tmp_path: Path, host: Host, first: ClosedBundle, answer: str, code: int) -> None:
    prefix = tmp_path / "prefix"
    got, words = at_terminal(host, first, answer, "trust", "init", first.trust, "--prefix", prefix)
    assert got == code, words
    assert "are these the fingerprints that the builder told you? [yes/no] " in words
    assert (prefix / "etc/allowed_signers").exists() is (code == 0)
    assert code == 0 or words.endswith(f"error: {first.trust}: not confirmed; nothing was changed\n")


def test_every_key_has_to_be_typed_and_no_other(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key, other_key: Key
) -> None:
    (tmp_path / "two").write_text(closed_key.allowed_signers.read_text() + other_key.allowed_signers.read_text())
    words = ("init", tmp_path / "two", "--prefix", tmp_path / "prefix", "--fingerprint")
    one = trust(host, first, *words, closed_key.public.fingerprint)
    assert one.returncode == 4
    assert one.stderr.endswith(
        f"error: {tmp_path}/two: not confirmed with --fingerprint: {shown(other_key)}"
        "hint: compare with what the builder told you; nothing was changed\n"
    )
    strange = trust(host, first, *words, "SHA256:x")
    assert strange.returncode == 4
    assert f"error: {tmp_path}/two: no key has the fingerprint SHA256:x; the file has SHA256:" in strange.stderr
    assert not (tmp_path / "prefix").exists()


def test_init_only_once(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key, other_key: Key) -> None:
    pin(host, first, tmp_path / "prefix", closed_key)
    before = tree_of(tmp_path / "prefix")
    fingerprint = other_key.public.fingerprint
    words = ("init", other_key.allowed_signers, "--prefix", tmp_path / "prefix", "--fingerprint", fingerprint)
    done = trust(host, first, *words)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}/prefix/etc/allowed_signers: signers were confirmed here already\n"
        "hint: runtime trust add FILE, or trust remove FINGERPRINT\n"
    )
    assert tree_of(tmp_path / "prefix") == before


def test_add_and_remove(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key, other_key: Key) -> None:
    prefix = tmp_path / "prefix"
    (tmp_path / "more").write_text(
        f"# theirs\n{closed_key.allowed_signers.read_text()}"
        f'next@example.com valid-before="20300101Z" {other_key.public.line}\n'
    )
    early = trust(host, first, "add", tmp_path / "more", "--prefix", prefix)
    assert early.returncode == 2
    assert early.stderr.startswith(f"error: {prefix}: no signers were confirmed here with `runtime trust init`\n")
    pin(host, first, prefix, closed_key)
    words = ("add", tmp_path / "more", "--prefix", prefix, "--fingerprint", other_key.public.fingerprint)
    added = trust(host, first, *words)
    line = f"256 {other_key.public.fingerprint} next@example.com (ED25519) valid-before 2030-01-01T00:00:00Z\n"
    assert (added.returncode, added.stdout) == (0, f"{line}trusted too\n"), added.stderr
    again = trust(host, first, *words)
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing is new\n", "")
    listed = trust(host, first, "list", "--prefix", prefix)
    assert listed.stdout == shown(closed_key) + line
    gone = trust(host, first, "remove", closed_key.public.fingerprint, "--prefix", prefix)
    assert (gone.returncode, gone.stdout) == (0, f"{shown(closed_key)}no longer trusted\n")
    assert kept(prefix) == f'{PIN_LINE}\nnext@example.com valid-before="20300101Z" {other_key.public.line}\n'
    last = trust(host, first, "remove", other_key.public.fingerprint, "--prefix", prefix)
    assert last.returncode == 2
    assert f"error: {other_key.public.fingerprint} is the only key that is trusted here\n" in last.stderr
    none = trust(host, first, "remove", closed_key.public.fingerprint, "--prefix", prefix)
    assert none.returncode == 2
    assert none.stderr.startswith(f"error: {prefix}: no signer has the fingerprint {closed_key.public.fingerprint}\n")
    assert [entry.split(" SHA256")[0] for entry in log_of(prefix)] == [
        "trust init release@example.com",
        "trust add next@example.com",
        "trust remove release@example.com",
    ]


def test_install_without_trust(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key, other_key: Key
) -> None:
    prefix = tmp_path / "prefix"
    words = ("install", first.tar, "--prefix", prefix)
    bare = host.runtime(first.pyz, *words)
    assert (bare.returncode, bare.stdout) == (2, "")
    assert bare.stderr == (
        f"error: {prefix}: no signers were confirmed here with `runtime trust init`\n"
        f"hint: runtime trust init ALLOWED_SIGNERS --prefix {prefix}, or give --trust FILE\n"
    )
    assert not prefix.exists()
    pin(host, first, prefix, other_key)
    stranger = host.runtime(first.pyz, *words)
    assert stranger.returncode == 4
    assert "is not among the allowed signers" in stranger.stderr
    fingerprint = closed_key.public.fingerprint
    added = trust(host, first, "add", first.trust, "--prefix", prefix, "--fingerprint", fingerprint)
    assert added.returncode == 0, added.stderr
    before = kept(prefix)
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 0, done.stderr
    assert f"signed by release@example.com {fingerprint}\n" in done.stderr
    assert kept(prefix) == before, "install never touches what was confirmed"
    assert host.runtime(first.pyz, *words, "--trust", first.trust).returncode == 0
    assert kept(prefix) == before


def test_the_copy_of_an_install_is_no_confirmation(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key
) -> None:
    prefix, forged = tmp_path / "prefix", tmp_path / "forged"
    forged.write_text(f"{PIN_LINE}\n{PIN_LINE}\n{first.trust.read_text()}")
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", forged)
    assert done.returncode == 0, done.stderr
    assert kept(prefix) == first.trust.read_text(), "the line that only `trust` writes was taken off"
    assert pinned_text(Prefix(path=prefix)) is None
    assert host.runtime(first.pyz, "install", first.tar, "--prefix", prefix).returncode == 2
    pin(host, first, prefix, closed_key)
    assert host.runtime(first.pyz, "install", first.tar, "--prefix", prefix).returncode == 0


def test_a_change_waits_for_nobody(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    prefix = tmp_path / "prefix"
    pin(host, first, prefix, closed_key)
    before = tree_of(prefix)
    with locked(prefix / "var/install.lock"):
        done = trust(host, first, "remove", closed_key.public.fingerprint, "--prefix", prefix)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == f"error: {prefix}: in use by another runtime\nhint: wait for it, then try again\n"
    assert tree_of(prefix) == before


def test_the_files_of_etc_are_looked_at_with_care(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key
) -> None:
    prefix = tmp_path / "prefix"
    pin(host, first, prefix, closed_key)
    (prefix / "etc/allowed_signers").write_bytes(b"\xff\xfe")
    done = trust(host, first, "list", "--prefix", prefix)
    assert done.returncode == 4
    assert done.stderr == f"error: {prefix}/etc/allowed_signers: not an allowed_signers file: it isn't text\n"
    (prefix / "etc/allowed_signers").unlink()
    (prefix / "etc/allowed_signers").mkdir()
    done = trust(host, first, "list", "--prefix", prefix)
    assert (done.returncode, done.stderr) == (7, f"error: can't read {prefix}/etc/allowed_signers: Is a directory\n")
