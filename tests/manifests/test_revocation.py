"""Revocation lists: the same verdict as ``ssh-keygen -Y verify -r``, and what is refused by name."""

import base64
import subprocess
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import TrustError
from manifests.revocation import parse_revoked_keys
from manifests.sshsig import BUNDLE_NAMESPACE
from manifests.trust import verify_signatures
from tests.factories import NOW, Key, sign_slot
from tests.manifests.test_sshsig import MESSAGE, Token, keygen, string


@pytest.fixture(scope="session")
def rsa_line(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The .pub line of an RSA key."""
    folder = tmp_path_factory.mktemp("rsa")
    assert keygen("-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", folder / "key").returncode == 0
    return (folder / "key.pub").read_text().strip()


@pytest.fixture(scope="session")
def ecdsa_line(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The .pub line of an ECDSA key."""
    folder = tmp_path_factory.mktemp("ecdsa")
    assert keygen("-q", "-t", "ecdsa", "-N", "", "-f", folder / "key").returncode == 0
    return (folder / "key.pub").read_text().strip()


def stock_accepts(key: Key, revoked: Path, folder: Path) -> bool:
    (folder / "sig").write_bytes(sign_slot(MESSAGE, key))
    words = ("-f", key.allowed_signers, "-I", key.identity, "-n", BUNDLE_NAMESPACE, "-s", folder / "sig", "-r", revoked)
    return keygen("-Y", "verify", *words, stdin=MESSAGE).returncode == 0


def we_accept(key: Key, revoked: Path) -> bool:
    try:
        trust = replace(key.trust, revoked=parse_revoked_keys(revoked.read_bytes(), where="revoked"))
        verify_signatures(MESSAGE, sign_slot(MESSAGE, key), trust, now=NOW)
    except TrustError:
        return False
    return True


LISTS: dict[str, tuple[str, bool]] = {  # what stands in the file, and whether $KEY still counts
    "empty": ("", True),
    "comments": ("# nobody\n\n \t# $KEY\n", True),
    "the key": ("$KEY\n", False),
    "with a comment": ("$KEY who it was\n", False),
    "without a newline": ("$KEY", False),
    "carriage return": ("$KEY\r\n", False),
    "indented": ("  \t$KEY\n", False),
    "behind others": ("$OTHER\n$RSA\n$ECDSA\n$TOKEN\n# x\n$KEY\n", False),
    "others": ("$OTHER\n$RSA\n$ECDSA\n$TOKEN\n", True),
    "junk before": ("junk\n$KEY\n", False),
    "junk alone": ("junk\n", False),
    "principals": ("who $KEY\n", False),
    "options": ('namespaces="x" $KEY\n', False),
    "type alone": ("ssh-ed25519\n", False),
    "cut": ("$CUT\n", False),
    "wrong type": ("ssh-rsa $BLOB\n", False),
    "left over": ("$LEFT\n", False),
    "no base64": ("ssh-ed25519 ====\n", False),
    "KRL text": ("key: $KEY\n", False),
    "two blanks": ("$TWO\n", False),
}


@pytest.mark.parametrize("case", LISTS)
def test_the_same_verdict_as_ssh_keygen(
    *, key: Key, second_key: Key, rsa_line: str, ecdsa_line: str, tmp_path: Path, case: str
) -> None:
    text, accepted = LISTS[case]
    kind, blob = key.public.line.split()
    longer = base64.b64encode(key.public.blob + b"x").decode()
    values = {
        "KEY": key.public.line,
        "OTHER": second_key.public.line,
        "RSA": rsa_line,
        "ECDSA": ecdsa_line,
        "TOKEN": Token().line,
        "CUT": f"{kind} {blob[:-8]}",
        "BLOB": blob,
        "LEFT": f"{kind} {longer}",
        "TWO": f"{kind}  {blob}",
    }
    text = Template(text).substitute(values)
    (tmp_path / "revoked").write_text(text)
    stock = stock_accepts(key, tmp_path / "revoked", tmp_path)
    ours = we_accept(key, tmp_path / "revoked")
    assert ours is accepted
    assert stock or not ours, "what we accept, ssh-keygen accepts"
    assert stock is accepted


def test_other_types_are_kept_but_sign_nothing(key: Key, rsa_line: str, ecdsa_line: str) -> None:
    token = Token()
    text = f"{rsa_line}\n{ecdsa_line}\n{token.line} a token\n{key.public.line}\n"
    revoked = parse_revoked_keys(text.encode(), where="revoked")
    assert len(revoked) == 4
    assert {token.blob, key.public.blob} < revoked


def test_a_revoked_signer_is_named(key: Key, second_key: Key) -> None:
    revoked = parse_revoked_keys(f"{key.public.line}\n".encode(), where="revoked")
    both = replace(key.trust, signers=(*key.trust.signers, *second_key.trust.signers), revoked=revoked)
    (left,) = verify_signatures(MESSAGE, sign_slot(MESSAGE, key, second_key), both, now=NOW)
    assert left.principals == "review@example.com"
    with pytest.raises(TrustError) as caught:
        verify_signatures(MESSAGE, sign_slot(MESSAGE, key, second_key), both, now=NOW, threshold=2)
    assert f"key {key.public.fingerprint} (release@example.com) is revoked" in caught.value.message


def test_a_binary_krl_is_refused_by_name(key: Key, tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-k", "-f", str(tmp_path / "krl"), f"{key.path}.pub"],  # noqa: S607 # the stock tool
        check=True,
    )
    assert not stock_accepts(key, tmp_path / "krl", tmp_path)
    with pytest.raises(TrustError) as caught:
        parse_revoked_keys((tmp_path / "krl").read_bytes(), where="etc/revoked_keys")
    assert caught.value.render() == (
        "error: etc/revoked_keys: is a binary KRL, which isn't supported\n"
        "hint: list the revoked keys themselves, one .pub line each"
    )


def test_messages_name_the_line(key: Key) -> None:
    shape = "expected KEYTYPE BASE64 [COMMENT], as in a .pub file"
    short = base64.b64encode(string(b"ssh-ed25519") + string(bytes(31))).decode()
    token = base64.b64encode(string(b"sk-ssh-ed25519@openssh.com") + string(bytes(32))).decode()
    kind, blob = key.public.line.split()
    cases = {
        f"who {key.public.line}": shape,
        "ssh-ed25519": shape,
        "ssh-ed25519-cert-v01@openssh.com AAAA": "certificates aren't supported",
        "ssh-ed25519 A": "the key is not base64: ",
        f"ssh-ed25519 {short}": "the key has 31 bytes, expected 32",
        f"sk-ssh-ed25519@openssh.com {token}": "a key or signature ends too early",
        f"ssh-rsa {blob}": "the line says ssh-rsa but its key is of another type",
        f"{kind} AB==": "the key is not canonical base64",
        f"{kind}\u00a0{blob}": shape,
    }
    for line, problem in cases.items():
        with pytest.raises(TrustError) as caught:
            parse_revoked_keys(f"# first\n{line}\n".encode(), where="revoked")
        assert caught.value.message.startswith(f"revoked: line 2: {problem}"), line
        assert caught.value.exit_code == 4
    with pytest.raises(TrustError, match=r"^revoked: not a list of revoked keys: it isn't text$"):
        parse_revoked_keys(b"\xff\xfe", where="revoked")


@given(st.binary(max_size=200))
def test_anything_ends_in_keys_or_a_trust_error(data: bytes) -> None:
    try:
        found = parse_revoked_keys(data, where="revoked")
    except TrustError:
        return
    assert all(line.strip(b" \t\r") == b"" or line.strip(b" \t\r").startswith(b"#") for line in data.split(b"\n"))
    assert found == frozenset()
