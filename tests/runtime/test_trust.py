"""Who a prefix trusts: kept by hand, revoked, rotated; the clock and what stands above it."""

import json
import os
import pty
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from manifests.errors import IntegrityError, PolicyError
from manifests.files import locked
from runtime.layout import Prefix
from runtime.state import State, check_may_install, check_time, downgrade_note
from runtime.trust import PIN_LINE, pinned_text
from tests.factories import Key, make_key, make_manifest, tree_of
from tests.factories_closed import ClosedBundle, Host, closed_files, make_closed_bundle, program
from tests.manifests.test_sshsig import Token

CREATED = "2026-01-02T03:04:05Z"
STATE = State(name="demo", sequence=5, created=CREATED)


@pytest.fixture(scope="session")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key that comes after the builder's."""
    return make_key(tmp_path_factory.mktemp("other") / "next", "next@example.com", seed=b"N" * 32)


@pytest.fixture(scope="session")
def rotating(tmp_path_factory: pytest.TempPathFactory, closed_key: Key, other_key: Key) -> ClosedBundle:
    """Signed by the builder's key, proposes the next one alone; no wheel but our own."""
    extra = {"config/allowed_signers": other_key.allowed_signers.read_bytes()}
    return make_closed_bundle(tmp_path_factory.mktemp("rotating"), closed_key, extra=extra)


def kept(prefix: Path) -> str:
    return (prefix / "etc/allowed_signers").read_text()


def log_of(prefix: Path) -> list[str]:
    lines = (prefix / "var/logs/releases.log").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines]


def shown(key: Key, note: str = "") -> str:
    return f"256 {key.public.fingerprint} {key.identity} (ED25519){note}\n"


def trust(host: Host, bundle: ClosedBundle, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    return host.runtime(bundle.pyz, "trust", *words)


def pin(host: Host, bundle: ClosedBundle, prefix: Path, *keys: Key) -> None:
    (host.home / "pin").write_text("".join(key.allowed_signers.read_text() for key in keys))
    typed = [word for key in keys for word in ("--fingerprint", key.public.fingerprint)]
    done = trust(host, bundle, "init", host.home / "pin", "--prefix", prefix, *typed)
    assert done.returncode == 0, done.stderr


def at_terminal(host: Host, bundle: ClosedBundle, answer: str, *words: str | Path) -> tuple[int, str]:
    """Run a runtime command whose stdin is a terminal where a person types ``answer``; return code and stderr."""
    here, there = pty.openpty()
    try:
        process = subprocess.Popen(
            host.command(*host.runtime_words(bundle.pyz, *words)),
            env=host.environment,
            stdin=there,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(here, answer.encode())
        _, words_of = process.communicate(timeout=60)
        return process.returncode, words_of
    finally:
        os.close(here)
        os.close(there)


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


def test_revoked_keys(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key, installed: Path) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text(f"# lost on a train\n{closed_key.public.line} old key\n")
    message = f"key {closed_key.public.fingerprint} (release@example.com) is revoked"
    given = ("--trust", first.trust, "--revoked", revoked)
    for words in (("install", first.tar, "--prefix", tmp_path / "prefix"), ("verify", first.tar)):
        done = host.runtime(first.pyz, *words, *given)
        assert (done.returncode, done.stdout) == (4, "")
        assert message in done.stderr
    assert not (tmp_path / "prefix").exists()
    there = host.runtime(first.pyz, "verify", "--prefix", installed, "--no-models", *given)
    assert there.returncode == 4
    assert message in there.stdout
    missing = host.runtime(first.pyz, "verify", first.tar, "--trust", first.trust, "--revoked", tmp_path / "none")
    assert (missing.returncode, missing.stderr) == (2, f"error: {tmp_path}/none: no such list of revoked keys\n")


def test_the_prefix_s_own_revocation_list(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    prefix = tmp_path / "prefix"
    pin(host, first, prefix, closed_key)
    (prefix / "etc/revoked_keys").write_text(f"{closed_key.public.line}\n")
    for words in ((), ("--trust", first.trust)):
        done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, *words)
        assert done.returncode == 4
        assert "is revoked" in done.stderr
    assert trust(host, first, "list", "--prefix", prefix).stdout == shown(closed_key, " REVOKED")
    (prefix / "etc/revoked_keys").write_bytes(b"SSHKRL\n\0\0\0\0\x01")
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix)
    assert done.returncode == 4
    assert f"error: {prefix}/etc/revoked_keys: is a binary KRL, which isn't supported\n" in done.stderr
    assert not list((prefix / "releases").iterdir())


def test_verify_time_overrides_and_is_recorded(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key
) -> None:
    prefix, signers = tmp_path / "prefix", tmp_path / "signers"
    signers.write_text(f'release@example.com valid-before="20260201Z" {closed_key.public.line}\n')
    words = ("install", first.tar, "--prefix", prefix, "--trust", signers)
    late = host.runtime(first.pyz, *words, "--verify-time", "20260301Z")
    assert late.returncode == 4
    assert "was valid only before 2026-02-01 00:00:00Z, judged at 2026-03-01 00:00:00Z" in late.stderr
    assert not prefix.exists()
    done = host.runtime(first.pyz, *words, "--verify-time", "20260103Z", "--json")
    assert done.returncode == 0, done.stderr
    note = "signatures judged at --verify-time 2026-01-03T00:00:00Z"
    assert f"{note}\n" in done.stderr
    name = json.loads(done.stdout)["release"]
    assert log_of(prefix) == [f"install {name}: {note}", f"install {name}"]
    options = ("--prefix", prefix, "--no-models", "--quick", "--verify-time")
    assert host.runtime(first.pyz, "verify", *options, "20260103Z").returncode == 0
    assert host.runtime(first.pyz, "verify", *options, "20260301Z").returncode == 4
    assert log_of(prefix)[2:] == [
        f"verify {name}: {note}",
        f"verify {name}: signatures judged at --verify-time 2026-03-01T00:00:00Z",
    ]
    medium = ("verify", first.tar, "--trust", signers, "--verify-time")
    assert host.runtime(first.pyz, *medium, "20260103Z").returncode == 0
    assert host.runtime(first.pyz, *medium, "20260301Z").returncode == 4
    wrong = host.runtime(first.pyz, *medium, "yesterday")
    assert wrong.returncode == 2
    assert "--verify-time: 'yesterday' is not a time of the form YYYYMMDD[HHMM[SS]][Z]" in wrong.stderr


def test_a_clock_that_went_back_does_not_help(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    """The prefix has seen a bundle of the year 2090; a signer that expired before can't come back."""
    prefix, signers = tmp_path / "prefix", tmp_path / "signers"
    prefix.mkdir()
    state = replace(STATE, created="2090-01-01T00:00:00Z")
    (prefix / "state.json").write_bytes(state.encode())
    signers.write_text(f'release@example.com valid-before="20800101Z" {closed_key.public.line}\n')
    words = ("install", first.tar, "--prefix", prefix, "--trust", signers, "--allow-downgrade")
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 4
    assert done.stderr.startswith("this host's clock says 20")
    assert (
        ", before the newest bundle installed here was made: signatures judged at 2090-01-01T00:00:00Z\n"
    ) in done.stderr
    assert "was valid only before 2080-01-01 00:00:00Z, judged at 2090-01-01 00:00:00Z" in done.stderr
    assert host.runtime(first.pyz, *words, "--verify-time", "20260601Z").returncode == 0


def test_the_time_of_a_check() -> None:
    clock = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert check_time(None, clock).now == clock
    same = check_time(STATE, clock)
    assert (same.now, same.note) == (clock, "")
    back = check_time(STATE, datetime(1970, 1, 1, tzinfo=UTC))
    assert (back.now, back.note) == (
        clock,
        (
            "this host's clock says 1970-01-01T00:00:00Z, before the newest bundle installed here was made: "
            "signatures judged at 2026-01-02T03:04:05Z"
        ),
    )
    wanted = datetime(2020, 1, 1, tzinfo=UTC)
    assert check_time(STATE, clock, wanted).now == wanted, "an operator's word is above the floor, and recorded"
    with pytest.raises(IntegrityError, match=r"^state\.json: created: 'then' is not a time$"):
        check_time(replace(STATE, created="then"), clock)


@pytest.mark.parametrize(
    ("sequence", "created", "older"),
    [
        (5, CREATED, False),
        (6, "2026-01-02T03:04:06Z", False),
        (4, "2026-01-02T03:04:06Z", True),
        (6, "2026-01-02T03:04:04Z", True),
        (4, "2026-01-02T03:04:04Z", True),
    ],
)
def test_older_by_sequence_or_by_time(*, sequence: int, created: str, older: bool) -> None:
    manifest = make_manifest({}, sequence=sequence, created=created)
    check_may_install(STATE, manifest, allow_downgrade=True)
    note = f", an allowed downgrade: sequence {sequence}, {created}, after sequence 5, {CREATED}"
    assert downgrade_note(STATE, manifest) == (note if older else "")
    if older:
        with pytest.raises(PolicyError) as caught:
            check_may_install(STATE, manifest, allow_downgrade=False)
        assert caught.value.message == (
            f"bundle 1.0.0 (sequence {sequence}, {created}) is older than what was installed here before "
            f"(sequence 5, {CREATED})"
        )
    else:
        check_may_install(STATE, manifest, allow_downgrade=False)


def test_rotation_is_shown_and_waits_for_a_word(
    tmp_path: Path, host: Host, rotating: ClosedBundle, closed_key: Key, other_key: Key
) -> None:
    prefix = tmp_path / "prefix"
    pin(host, rotating, prefix, closed_key)
    words = ("install", rotating.tar, "--prefix", prefix, "--json")
    done = host.runtime(rotating.pyz, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["signers_accepted"] is False
    assert done.stderr.endswith(
        "this bundle proposes other signers for the next one:\n"
        f"  + {shown(other_key)}  - {shown(closed_key)}"
        "the signers of this prefix stay as they are; to accept: run the same install with --accept-signers\n"
    )
    assert kept(prefix) == f"{PIN_LINE}\n{closed_key.allowed_signers.read_text()}"
    accepted = host.runtime(rotating.pyz, *words, "--accept-signers")
    assert accepted.returncode == 0, accepted.stderr
    document = json.loads(accepted.stdout)
    assert (document["changed"], document["signers_accepted"]) == (False, True)
    assert kept(prefix) == f"{PIN_LINE}\n{other_key.allowed_signers.read_text()}"
    assert log_of(prefix)[-1] == (
        f"signers accepted from {document['release']}: added next@example.com {other_key.public.fingerprint}; "
        f"removed release@example.com {closed_key.public.fingerprint}"
    )
    again = host.runtime(rotating.pyz, *words)
    assert again.returncode == 4, "the old key is no longer trusted here"
    with_old = host.runtime(rotating.pyz, *words, "--trust", rotating.trust, "--accept-signers")
    assert with_old.returncode == 0, with_old.stderr
    assert "signers_accepted" not in json.loads(with_old.stdout), "nothing is proposed that isn't there"


def test_rotation_at_a_terminal(tmp_path: Path, host: Host, rotating: ClosedBundle, other_key: Key) -> None:
    prefix = tmp_path / "prefix"
    words = ("install", rotating.tar, "--prefix", prefix, "--trust", rotating.trust)
    code, told = at_terminal(host, rotating, "no\n", *words)
    assert (code, kept(prefix)) == (0, rotating.trust.read_text()), told
    code, told = at_terminal(host, rotating, "yes\n", *words)
    assert code == 0, told
    assert "trust exactly these from now on? [yes/no] " in told
    assert kept(prefix) == f"{PIN_LINE}\n{other_key.allowed_signers.read_text()}"


def test_rotation_needs_a_signature_under_the_prefix_s_own_signers(
    tmp_path: Path, host: Host, rotating: ClosedBundle
) -> None:
    """``--trust`` decides what is installed; whom the prefix trusts, only those decide whom it trusts."""
    prefix, boss = tmp_path / "prefix", make_key(tmp_path / "boss", "boss@example.com")
    pin(host, rotating, prefix, boss)
    words = ("install", rotating.tar, "--prefix", prefix, "--trust", rotating.trust)
    done = host.runtime(rotating.pyz, *words)
    assert done.returncode == 0, done.stderr
    assert "the signers of this prefix stay; what this bundle proposes can't be accepted: the bundle has 0 of 1" in (
        done.stderr
    )
    refused = host.runtime(rotating.pyz, *words, "--accept-signers")
    assert refused.returncode == 4
    assert "is not among the allowed signers" in refused.stderr
    assert kept(prefix) == f"{PIN_LINE}\n{boss.allowed_signers.read_text()}"


@pytest.mark.parametrize(("text", "problem"), [(b"junk\n", "line 1: expected PRINCIPALS"), (b"\xff", "it isn't text")])
def test_proposed_signers_that_can_t_be_read(
    tmp_path: Path, host: Host, closed_key: Key, text: bytes, problem: str
) -> None:
    files = closed_files(extra={"config/allowed_signers": text})
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, files=files)
    words = ("install", bundle.tar, "--prefix", tmp_path / "prefix", "--trust", bundle.trust)
    done = host.runtime(bundle.pyz, *words)
    assert done.returncode == 0, done.stderr
    assert problem in done.stderr
    assert host.runtime(bundle.pyz, *words, "--accept-signers").returncode == 4
    assert kept(tmp_path / "prefix") == bundle.trust.read_text()


def test_install_sh_hands_the_options_on(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    (tmp_path / "revoked").write_text(f"{closed_key.public.line}\n")
    words = ("sh", first.kit / "install.sh", "--kit", first.kit, "--verify-time", "20260103Z")
    done = host.run(*words, "--revoked", tmp_path / "revoked", first.tar, "--prefix", tmp_path / "prefix")
    assert done.returncode == 4
    assert "signatures judged at --verify-time 2026-01-03T00:00:00Z\n" in done.stderr
    assert f"key {closed_key.public.fingerprint} (release@example.com) is revoked" in done.stderr


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
