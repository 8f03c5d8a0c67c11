"""Signers that a bundle proposes for the next one: shown, asked for, recorded."""

import json
from pathlib import Path

import pytest

from runtime.trust import PIN_LINE
from tests.factories import Key, make_key
from tests.factories_closed import ClosedBundle, Host, closed_files, make_closed_bundle
from tests.factories_trust import at_terminal, kept, log_of, pin, shown


@pytest.fixture(scope="session")
def rotating(tmp_path_factory: pytest.TempPathFactory, closed_key: Key, other_key: Key) -> ClosedBundle:
    """Signed by the builder's key, proposes the next one alone; no wheel but our own."""
    extra = {"config/allowed_signers": other_key.allowed_signers.read_bytes()}
    return make_closed_bundle(tmp_path_factory.mktemp("rotating"), closed_key, extra=extra)


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
