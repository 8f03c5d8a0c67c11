"""allowed_signers as OpenSSH reads it, thresholds, and the one decision."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from manifests.errors import TrustError, UsageError
from manifests.sshsig import BUNDLE_NAMESPACE, PublicKey
from manifests.trust import TrustRoot, parse_allowed_signers, parse_time, verify_signatures
from tests.factories import NOW, Key, make_key, sign_slot
from tests.manifests.test_sshsig import MESSAGE, Token, keygen_verify

HINT = "compare fingerprints with the builder by another way than the medium (ssh-keygen -l -f KEY.pub)"


def parse(text: str) -> TrustRoot:
    return parse_allowed_signers(text, where="signers")


def both(*keys: Key) -> TrustRoot:
    return TrustRoot(signers=tuple(signer for key in keys for signer in key.trust.signers))


def refusal(slot: bytes, trust: TrustRoot, *, message: bytes = MESSAGE, threshold: int = 1, now: datetime = NOW) -> str:
    with pytest.raises(TrustError) as caught:
        verify_signatures(message, slot, trust, threshold=threshold, now=now)
    assert caught.value.exit_code == 4
    return caught.value.message


def test_a_trusted_signature_returns_its_signer(key: Key) -> None:
    (signer,) = verify_signatures(MESSAGE, sign_slot(MESSAGE, key), key.trust, now=NOW)
    assert signer.principals == "release@example.com"
    assert signer.fingerprint == key.public.fingerprint


def test_a_token_is_trusted_like_a_key() -> None:
    token = Token()
    slot = token.sign(MESSAGE)
    (signer,) = verify_signatures(MESSAGE, slot, parse(f"who {token.line}"), now=NOW)
    assert signer.principals == "who"


def test_unsigned(key: Key) -> None:
    with pytest.raises(TrustError) as caught:
        verify_signatures(MESSAGE, b"\n" * 16384, key.trust, now=NOW)
    assert caught.value.message == "the bundle is not signed"
    assert caught.value.hint == "on the builder's side: bundler sign BUNDLE --key FILE"


def test_signed_by_a_stranger(key: Key, second_key: Key) -> None:
    message = refusal(sign_slot(MESSAGE, second_key), key.trust)
    stranger = second_key.public.fingerprint
    assert message == f"the bundle has 0 of 1 trusted signatures; key {stranger} is not among the allowed signers"


def test_a_stranger_beside_a_trusted_signer_does_no_harm(key: Key, second_key: Key) -> None:
    signers = verify_signatures(MESSAGE, sign_slot(MESSAGE, second_key, key), key.trust, now=NOW)
    assert [signer.principals for signer in signers] == ["release@example.com"]


def test_a_tampered_manifest(key: Key) -> None:
    with pytest.raises(TrustError) as caught:
        verify_signatures(MESSAGE + b" ", sign_slot(MESSAGE, key), key.trust, now=NOW)
    who = f"release@example.com ({key.public.fingerprint})"
    assert caught.value.message == f"the signature by {who} does not fit the manifest: one of the two was changed"
    assert caught.value.hint == "copy the bundle again from its source, and report this if it happens twice"


def test_a_signature_for_another_purpose(key: Key) -> None:
    slot = sign_slot(MESSAGE, key, namespace="file")
    assert refusal(slot, key.trust) == (
        f"the bundle has 0 of 1 trusted signatures; key {key.public.fingerprint} signed for namespace 'file', "
        "expected 'sealift-bundle-v1'"
    )


def test_another_purpose_can_be_asked_for(key: Key) -> None:
    trust = parse(f"who {key.public.line}")
    slot = sign_slot(MESSAGE, key, namespace="sealift-rehearsal-v1")
    (signer,) = verify_signatures(MESSAGE, slot, trust, namespace="sealift-rehearsal-v1", now=NOW)
    assert signer.principals == "who"


def test_the_threshold_counts_distinct_keys(key: Key, second_key: Key) -> None:
    trust = both(key, second_key)
    signers = verify_signatures(MESSAGE, sign_slot(MESSAGE, key, second_key), trust, threshold=2, now=NOW)
    assert [signer.principals for signer in signers] == ["release@example.com", "review@example.com"]
    good = f"good: release@example.com ({key.public.fingerprint})"
    twice = refusal(sign_slot(MESSAGE, key, key), trust, threshold=2)
    assert twice == f"the bundle has 1 of 2 trusted signatures; {good}"
    one = refusal(sign_slot(MESSAGE, key, second_key), key.trust, threshold=2)
    assert one == (
        f"the bundle has 1 of 2 trusted signatures; {good}; "
        f"key {second_key.public.fingerprint} is not among the allowed signers"
    )


def test_one_key_under_two_names_counts_once(key: Key) -> None:
    trust = parse(f"a {key.public.line}\nb {key.public.line}\n")
    assert "1 of 2" in refusal(sign_slot(MESSAGE, key, key), trust, threshold=2)


def test_one_secret_in_two_wrappings_counts_once(tmp_path: Path) -> None:
    token = Token()
    plain = make_key(tmp_path / "k", seed=b"T" * 32)
    trust = parse(f"a {plain.public.line}\nb {token.line}\n")
    block = sign_slot(MESSAGE, plain).rstrip(b"\n") + b"\n"
    assert "1 of 2" in refusal(block + token.sign(MESSAGE), trust, threshold=2)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_below_one_is_refused(key: Key, threshold: int) -> None:
    with pytest.raises(UsageError) as caught:
        verify_signatures(MESSAGE, sign_slot(MESSAGE, key), key.trust, threshold=threshold, now=NOW)
    assert caught.value.message == f"{threshold} signatures asked for, at least 1 is needed"


def test_a_revoked_key(key: Key) -> None:
    trust = replace(key.trust, revoked=frozenset({key.public.blob}))
    assert refusal(sign_slot(MESSAGE, key), trust) == (
        f"the bundle has 0 of 1 trusted signatures; key {key.public.fingerprint} (release@example.com) is revoked"
    )


def test_the_refusal_says_what_to_do(key: Key, second_key: Key) -> None:
    with pytest.raises(TrustError) as caught:
        verify_signatures(MESSAGE, sign_slot(MESSAGE, second_key), key.trust, now=NOW)
    assert caught.value.hint == HINT


def hint_of(slot: bytes, trust: TrustRoot, threshold: int = 1) -> str | None:
    with pytest.raises(TrustError) as caught:
        verify_signatures(MESSAGE, slot, trust, threshold=threshold, now=NOW)
    return caught.value.hint


def test_what_to_do_follows_from_what_is_wrong(key: Key, second_key: Key) -> None:
    slot = sign_slot(MESSAGE, key)
    revoked = replace(key.trust, revoked=frozenset({key.public.blob}))
    assert hint_of(slot, revoked) == "ask the builder for a signature by a key that isn't revoked"
    clock = "compare this host's clock (date -u); if it is right, ask the builder to sign with a key that is valid"
    for option in ('valid-before="20250101Z"', 'valid-after="20400101Z"'):
        assert hint_of(slot, parse(f"a {option} {key.public.line}\n")) == clock
    assert hint_of(slot, parse(f'a namespaces="git" {key.public.line}\n')) == HINT
    assert hint_of(slot, key.trust, 2) == (
        "ask for the signatures that are missing: bundler sign BUNDLE --key FILE, by someone else's key"
    )
    assert hint_of(slot + sign_slot(MESSAGE, second_key), key.trust, 2) == HINT
    assert hint_of(slot + sign_slot(MESSAGE, second_key), revoked) == HINT


def test_a_malformed_slot(key: Key) -> None:
    assert refusal(b"junk", key.trust).startswith("the signature slot holds something other than")


@pytest.mark.parametrize(
    ("options", "days", "problem"),
    [
        ('valid-after="20260101Z"', 0, None),
        ('valid-after="20260102030405Z"', 0, None),
        ('valid-after="20260102030406Z"', 0, "is valid only after 2026-01-02 03:04:06Z"),
        ('valid-before="20260102030405Z"', 0, None),
        ('valid-before="20260102030404Z"', 0, "was valid only before 2026-01-02 03:04:04Z"),
        ('valid-after="20260101Z",valid-before="20260201Z"', 10, None),
        ('valid-after="20260101Z",valid-before="20260201Z"', 40, "was valid only before 2026-02-01 00:00:00Z"),
        ('valid-after="20260101Z",valid-before="20260201Z"', -40, "is valid only after 2026-01-01 00:00:00Z"),
    ],
)
def test_validity(key: Key, options: str, days: int, problem: str | None) -> None:
    trust, now = parse(f"who {options} {key.public.line}"), NOW + timedelta(days=days)
    slot = sign_slot(MESSAGE, key)
    if problem is None:
        assert len(verify_signatures(MESSAGE, slot, trust, now=now)) == 1
    else:
        assert refusal(slot, trust, now=now) == (
            f"the bundle has 0 of 1 trusted signatures; key {key.public.fingerprint} (who) {problem}, "
            f"judged at {now:%Y-%m-%d %H:%M:%SZ}"
        )


def test_a_second_line_for_the_same_key_may_be_valid(key: Key) -> None:
    trust = parse(f'old valid-before="20200101Z" {key.public.line}\nnew {key.public.line}\n')
    (signer,) = verify_signatures(MESSAGE, sign_slot(MESSAGE, key), trust, now=NOW)
    assert signer.principals == "new"


NAMESPACES = {
    BUNDLE_NAMESPACE: True,
    "sealift-*": True,
    "*": True,
    "sealift-bundle-v?": True,
    f"git,{BUNDLE_NAMESPACE}": True,
    "git,file": False,
    "sealift-bundle-v": False,
    "sealift-bundle-v1?": False,
    "Sealift-bundle-v1": False,
    "sealift.bundle.v1": False,
    "[s]ealift-*": False,
    f"*,!{BUNDLE_NAMESPACE}": False,
    f"!{BUNDLE_NAMESPACE},*": False,
    "*,!git": True,
    "!git": False,
    ",": False,
    f" {BUNDLE_NAMESPACE}": False,
}


@pytest.mark.parametrize(("patterns", "allowed"), NAMESPACES.items())
def test_namespaces_mean_what_they_mean_to_ssh_keygen(key: Key, tmp_path: Path, patterns: str, allowed: bool) -> None:
    line = f'{key.identity} namespaces="{patterns}" {key.public.line}\n'
    trust, slot = parse(line), sign_slot(MESSAGE, key)
    (tmp_path / "allowed").write_text(line)
    (tmp_path / "sig").write_bytes(slot)
    assert keygen_verify(key, tmp_path / "sig", MESSAGE, tmp_path / "allowed") is allowed
    if allowed:
        assert len(verify_signatures(MESSAGE, slot, trust, now=NOW)) == 1
    else:
        assert f"({key.identity}) is not allowed in namespace sealift-bundle-v1" in refusal(slot, trust)


LINES: dict[str, str] = {
    "plain": "release@example.com KEY",
    "comment behind": "release@example.com KEY a comment here",
    "tabs": 'release@example.com\tnamespaces="sealift-*"\tKEY',
    "several blanks": "release@example.com   KEY",
    "leading blank": "  release@example.com KEY",
    "carriage return": "release@example.com KEY\r",
    "several principals": "other@example.com,release@example.com KEY",
    "pattern": "*@example.com KEY",
    "quoted": '"release@example.com" KEY',
    "quoted with a space": '"release@example.com,a b" KEY',
    "upper-case option": 'release@example.com Namespaces="sealift-*" KEY',
    "all options": 'release@example.com namespaces="a,sealift-*",valid-after="20200101",valid-before="20900101" KEY',
}


@pytest.mark.parametrize("case", LINES)
def test_lines_that_ssh_keygen_takes(key: Key, tmp_path: Path, case: str) -> None:
    text = "# a comment\n\n" + LINES[case].replace("KEY", key.public.line) + "\n \t# another\n"
    slot = sign_slot(MESSAGE, key)
    (tmp_path / "allowed").write_text(text)
    (tmp_path / "sig").write_bytes(slot)
    assert keygen_verify(key, tmp_path / "sig", MESSAGE, tmp_path / "allowed")
    trust = parse(text)
    assert [signer.key for signer in trust.signers] == [key.public]
    assert len(verify_signatures(MESSAGE, slot, trust, now=NOW)) == 1


def test_what_a_line_says(key: Key) -> None:
    (signer,) = parse(
        f'"a b,c" namespaces="x,y*",valid-after="20260102Z",valid-before="202601030405Z" {key.public.line} comment'
    ).signers
    assert signer.principals == "a b,c"
    assert signer.key == key.public
    assert signer.namespaces == ("x", "y*")
    assert signer.valid_after == datetime(2026, 1, 2, tzinfo=UTC)
    assert signer.valid_before == datetime(2026, 1, 3, 4, 5, tzinfo=UTC)
    (plain,) = parse(f"who {key.public.line}").signers
    assert (plain.namespaces, plain.valid_after, plain.valid_before) == ((), None, None)


SHAPE = "expected PRINCIPALS [OPTIONS] KEYTYPE BASE64"
BAD_LINES: dict[str, tuple[str, str]] = {
    "principals alone": ("who", SHAPE),
    "no key": ("who ssh-ed25519", SHAPE),
    "trailing comma": ('who namespaces="a", KEY', SHAPE),
    "option alone": ('who namespaces="a"', SHAPE),
    "quote": ('"who KEY', "a quotation mark is not closed"),
    "cert-authority": ("who cert-authority KEY", "cert-authority isn't supported"),
    "unknown option": ("who no-touch-required KEY", "unknown option 'no-touch-required'"),
    "twice": ('who namespaces="a",namespaces="b" KEY', "option namespaces appears twice"),
    "empty namespaces": ('who namespaces="" KEY', "option namespaces is empty"),
    "namespaces alone": ("who namespaces KEY", "option namespaces is empty"),
    "time": ('who valid-after="tomorrow" KEY', "'tomorrow' is not a time of the form YYYYMMDD[HHMM[SS]][Z]"),
    "time alone": ("who valid-before KEY", "'' is not a time of the form YYYYMMDD[HHMM[SS]][Z]"),
    "base64": ("who ssh-ed25519 A===", "a key or signature is not base64"),
    "type": ("who ssh-rsa BLOB", "a key line says ssh-rsa but its key is ssh-ed25519"),
    "no-break space": ("who\u00a0KEY", SHAPE),
    "control characters are no line ends": ("# x\x0cwho KEY\nwho", SHAPE),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_lines_that_are_refused(key: Key, case: str) -> None:
    line, problem = BAD_LINES[case]
    text = line.replace("KEY", key.public.line).replace("BLOB", key.public.line.split()[1])
    number = 2 + text.count("\n")
    with pytest.raises(TrustError) as caught:
        parse(f"# first\n{text}\n")
    assert str(caught.value).startswith(f"signers: line {number}: {problem}")


def test_hints_survive_the_line_number(key: Key) -> None:
    with pytest.raises(TrustError) as caught:
        parse(f"ca cert-authority {key.public.line}")
    assert caught.value.hint == "list the signers' own keys"


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody\n", "# x\x0bwho KEY", "# x\u2028who KEY", "# x\x85who KEY"])
def test_a_file_without_signers(key: Key, text: str) -> None:
    with pytest.raises(TrustError) as caught:
        parse(text.replace("KEY", key.public.line))
    assert caught.value.message == "signers: lists no signer"
    assert caught.value.hint == "bundler keygen writes such a file: PATH.allowed_signers"


@pytest.fixture
def seoul() -> Iterator[None]:
    """The local time zone is nine hours ahead of UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "KST-9"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("seoul")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20260102", datetime(2026, 1, 1, 15, tzinfo=UTC)),
        ("20260102Z", datetime(2026, 1, 2, tzinfo=UTC)),
        ("202601020304", datetime(2026, 1, 1, 18, 4, tzinfo=UTC)),
        ("20260102030405Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_times_are_local_unless_they_end_in_z(text: str, expected: datetime) -> None:
    got = parse_time(text)
    assert got == expected
    assert got.utcoffset() == timedelta()


@pytest.mark.usefixtures("seoul")
@pytest.mark.parametrize(
    "text", ["", "Z", "2026", "20261301", "20260230Z", "2026 1 2", "202601 2", "2026010203", "\u0662" * 8, "00010101"]
)
def test_times_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(TrustError) as caught:
        parse_time(text)
    assert str(caught.value) == f"{text!r} is not a time of the form YYYYMMDD[HHMM[SS]][Z]"


def test_public_keys_of_trust_are_whole(key: Key) -> None:
    assert isinstance(key.trust.signers[0].key, PublicKey)
