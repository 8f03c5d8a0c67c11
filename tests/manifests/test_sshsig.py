"""SSH signatures: both directions against stock ssh-keygen, a FIDO token made by hand, and strict parsing."""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import TrustError
from manifests.sshsig import (
    BUNDLE_NAMESPACE,
    SK_ED25519,
    PublicKey,
    armored_signature,
    parse_public_key,
    parse_signatures,
    signed_data,
)
from tests.factories import Key, make_key, sign_slot

BEGIN = b"-----BEGIN SSH SIGNATURE-----\n"
END = b"-----END SSH SIGNATURE-----\n"
MESSAGE = b'{"a":1}\n'


def keygen(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *arguments], input=stdin, capture_output=True, check=False)  # noqa: S607 # the stock tool, wherever it is


def keygen_verify(key: Key, signature: Path, message: bytes, allowed: Path | None = None) -> bool:
    trust = allowed or key.allowed_signers
    arguments = ("-Y", "verify", "-f", trust, "-I", key.identity, "-n", BUNDLE_NAMESPACE, "-s", signature)
    return keygen(*arguments, stdin=message).returncode == 0


def keygen_sign(key: Key, message: Path, *options: str, namespace: str = BUNDLE_NAMESPACE) -> bytes:
    done = keygen("-Y", "sign", *options, "-f", key.path, "-n", namespace, message)
    assert done.returncode == 0, done.stderr
    return message.with_name(f"{message.name}.sig").read_bytes()


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def armor(wire: bytes) -> bytes:
    text = base64.b64encode(wire)
    return BEGIN + b"".join(text[at : at + 70] + b"\n" for at in range(0, len(text), 70)) + END


def wire_of(key: Key, **changes: bytes) -> bytes:
    """Return an SSHSIG blob, whole fields of which can be replaced."""
    namespace = changes.get("namespace", BUNDLE_NAMESPACE.encode())
    hash_name = changes.get("hash", b"sha512")
    raw = changes.get("raw", key.private.sign(signed_data(MESSAGE, BUNDLE_NAMESPACE)))
    inner = changes.get("inner", string(changes.get("kind", b"ssh-ed25519")) + string(raw))
    return (
        changes.get("magic", b"SSHSIG")
        + changes.get("version", b"\0\0\0\x01")
        + string(changes.get("blob", key.public.blob))
        + string(namespace)
        + string(changes.get("reserved", b""))
        + string(hash_name)
        + string(inner)
        + changes.get("rest", b"")
    )


def test_ssh_keygen_accepts_what_we_sign(key: Key, tmp_path: Path) -> None:
    signature = tmp_path / "manifest.json.sig"
    signature.write_bytes(sign_slot(MESSAGE, key))
    assert keygen_verify(key, signature, MESSAGE)
    assert not keygen_verify(key, signature, MESSAGE + b" ")


def test_ssh_keygen_reads_the_first_block_of_a_cosigned_slot(key: Key, second_key: Key, tmp_path: Path) -> None:
    signature = tmp_path / "manifest.json.sig"
    signature.write_bytes(sign_slot(MESSAGE, key, second_key))
    assert keygen_verify(key, signature, MESSAGE)
    assert not keygen_verify(second_key, signature, MESSAGE)
    signature.write_bytes(
        armored_signature(
            second_key.public, second_key.private.sign(signed_data(MESSAGE, BUNDLE_NAMESPACE)), BUNDLE_NAMESPACE
        )
    )
    assert keygen_verify(second_key, signature, MESSAGE)


@pytest.mark.parametrize("options", [(), ("-O", "hashalg=sha256")])
def test_we_accept_what_ssh_keygen_signs(key: Key, tmp_path: Path, options: tuple[str, ...]) -> None:
    message = tmp_path / "manifest.json"
    message.write_bytes(MESSAGE)
    (signature,) = parse_signatures(keygen_sign(key, message, *options))
    assert signature.key == key.public
    assert signature.namespace == BUNDLE_NAMESPACE
    assert signature.hash_algorithm == (options[1].removeprefix("hashalg=") if options else "sha512")
    assert (signature.flags, signature.counter) == (0, 0)
    assert signature.verifies(MESSAGE, BUNDLE_NAMESPACE)
    assert not signature.verifies(MESSAGE + b" ", BUNDLE_NAMESPACE)
    assert not signature.verifies(MESSAGE, "another")


def test_our_armor_is_ssh_keygens_byte_for_byte(key: Key, tmp_path: Path) -> None:
    message = tmp_path / "manifest.json"
    message.write_bytes(MESSAGE)
    assert sign_slot(MESSAGE, key).rstrip(b"\n") + b"\n" == keygen_sign(key, message)
    assert armor(wire_of(key)) == keygen_sign(key, message)


def test_a_key_that_ssh_keygen_made(tmp_path: Path) -> None:
    assert keygen("-t", "ed25519", "-N", "", "-C", "a b", "-f", tmp_path / "id").returncode == 0
    kind, text, *_ = (tmp_path / "id.pub").read_text().split()
    key = parse_public_key(kind, text)
    assert key.line == f"{kind} {text}"
    assert key.fingerprint in keygen("-l", "-f", tmp_path / "id.pub").stdout.decode().split()


def test_the_factorys_key_files_are_stock(tmp_path: Path) -> None:
    key = make_key(tmp_path / "k")
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert keygen("-y", "-f", key.path).stdout.decode().strip() == key.public.line


class Token:
    """A FIDO token in software: signs as CTAP2 does, with flags and a counter (OpenSSH's PROTOCOL.u2f)."""

    def __init__(self, application: bytes = b"ssh:") -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(b"T" * 32)
        self.application = application
        self.blob = (
            string(SK_ED25519.encode()) + string(self.private.public_key().public_bytes_raw()) + string(application)
        )

    @property
    def line(self) -> str:
        return f"{SK_ED25519} {base64.b64encode(self.blob).decode()}"

    def sign(self, message: bytes, *, flags: int = 1, counter: int = 7) -> bytes:
        hashed = hashlib.sha256(signed_data(message, BUNDLE_NAMESPACE)).digest()
        tail = bytes([flags]) + counter.to_bytes(4, "big")
        raw = self.private.sign(hashlib.sha256(self.application).digest() + tail + hashed)
        inner = string(SK_ED25519.encode()) + string(raw) + tail
        fields = (self.blob, BUNDLE_NAMESPACE.encode(), b"", b"sha512", inner)
        return armor(b"SSHSIG\0\0\0\x01" + b"".join(map(string, fields)))


def test_a_fido_token_verifies_here_and_with_ssh_keygen(tmp_path: Path) -> None:
    token = Token()
    block = token.sign(MESSAGE)
    (signature,) = parse_signatures(block)
    assert (signature.key.type, signature.key.application) == (SK_ED25519, b"ssh:")
    assert (signature.flags, signature.counter) == (1, 7)
    assert signature.verifies(MESSAGE, BUNDLE_NAMESPACE)
    assert not signature.verifies(MESSAGE + b" ", BUNDLE_NAMESPACE)
    (tmp_path / "sig").write_bytes(block)
    (tmp_path / "allowed").write_text(f"who {token.line}\n")
    done = keygen(
        *("-Y", "verify", "-f", tmp_path / "allowed", "-I", "who", "-n", BUNDLE_NAMESPACE, "-s", tmp_path / "sig"),
        stdin=MESSAGE,
    )
    assert done.returncode == 0, done.stderr


def test_a_token_must_have_been_touched() -> None:
    (untouched,) = parse_signatures(Token().sign(MESSAGE, flags=0))
    assert not untouched.verifies(MESSAGE, BUNDLE_NAMESPACE)
    (with_pin,) = parse_signatures(Token().sign(MESSAGE, flags=5))
    assert with_pin.verifies(MESSAGE, BUNDLE_NAMESPACE)


def test_a_tokens_flags_and_counter_are_signed() -> None:
    wire = base64.b64decode(b"".join(Token().sign(MESSAGE).splitlines()[1:-1]))
    (signature,) = parse_signatures(armor(wire[:-1] + b"\x08"))
    assert signature.counter == 8
    assert not signature.verifies(MESSAGE, BUNDLE_NAMESPACE)


def test_a_slot_of_newlines_is_unsigned() -> None:
    assert parse_signatures(b"\n" * 16384) == ()
    assert parse_signatures(b"") == ()


def test_several_blocks_keep_their_order(key: Key, second_key: Key) -> None:
    got = parse_signatures(sign_slot(MESSAGE, second_key, key))
    assert [signature.key for signature in got] == [second_key.public, key.public]


JUNK = "the signature slot holds something other than SSH signatures and newlines"
BASE64 = "a key or signature is not base64"
EARLY = "a key or signature ends too early"


def bad_armor(key: Key) -> dict[str, tuple[bytes, str]]:
    """Return slots that are wrong before anything is decoded."""
    block = sign_slot(MESSAGE, key).rstrip(b"\n") + b"\n"
    body = block.removeprefix(BEGIN).removesuffix(END)
    return {
        "junk": (b"hello", JUNK),
        "junk after": (block + b"junk\n", JUNK),
        "junk between": (block + b" " + block, JUNK),
        "zero padding": (block + b"\0", JUNK),
        "no newline at the end": (block[:-1], JUNK),
        "carriage returns": (block.replace(b"\n", b"\r\n"), JUNK),
        "space in a line": (BEGIN + b" " + body + END, JUNK),
        "empty line within": (BEGIN + b"\n" + body + END, JUNK),
        "long line": (BEGIN + body.replace(b"\n", b"") + b"\n" + END, JUNK),
        "empty body": (BEGIN + END, JUNK),
        "a newline first": (b"\n" + block, "the signature slot begins with a newline: ssh-keygen would not read it"),
        "not base64": (BEGIN + b"A\n" + END, f"{BASE64}: "),
        "padding within": (BEGIN + b"AA==AAAA\n" + END, BASE64),
        "stray bits": (BEGIN + b"AB==\n" + END, "a key or signature is not canonical base64"),
    }


def bad_wire(key: Key) -> dict[str, tuple[bytes, str]]:
    """Return well-armored blocks whose content is wrong."""
    rsa = string(b"ssh-rsa") + string(b"\x01\0\x01") + string(b"\xff" * 64)
    sk = Token()
    return {
        "magic": (armor(wire_of(key, magic=b"SSHSIF")), "a signature block is not SSHSIG version 1"),
        "version": (armor(wire_of(key, version=b"\0\0\0\x02")), "a signature block is not SSHSIG version 1"),
        "short": (armor(b"SSHSIG"), EARLY),
        "cut": (armor(wire_of(key)[:-1]), EARLY),
        "long length": (armor(b"SSHSIG\0\0\0\x01" + b"\xff" * 8), EARLY),
        "left over": (armor(wire_of(key, rest=b"x")), "a key or signature has bytes left over"),
        "left over within": (
            armor(wire_of(key, inner=string(b"ssh-ed25519") + string(bytes(64)) + b"x")),
            "a key or signature has bytes left over",
        ),
        "key left over": (armor(wire_of(key, blob=key.public.blob + b"x")), "a key or signature has bytes left over"),
        "namespace": (
            armor(wire_of(key, namespace=b"")),
            "a signature block has namespace '' and hash 'sha512', which isn't supported",
        ),
        "namespace not ASCII": (
            armor(wire_of(key, namespace=b"\xff")),
            "a key or signature has a name that isn't ASCII",
        ),
        "reserved": (
            armor(wire_of(key, reserved=b"x")),
            "a signature block has namespace 'sealift-bundle-v1' and hash 'sha512', which isn't supported",
        ),
        "hash": (
            armor(wire_of(key, hash=b"sha1")),
            "a signature block has namespace 'sealift-bundle-v1' and hash 'sha1', which isn't supported",
        ),
        "type": (armor(wire_of(key, kind=b"ssh-rsa")), "a signature block's signature is of another type than its key"),
        "length": (armor(wire_of(key, raw=bytes(63))), "a signature block has 63 signature bytes, expected 64"),
        "RSA": (armor(wire_of(key, blob=rsa)), "key type 'ssh-rsa' isn't supported"),
        "low order": (
            armor(wire_of(key, blob=string(b"ssh-ed25519") + string(b"\x01" + bytes(31)))),
            "an ssh-ed25519 key is not a canonical point of large order",
        ),
        "short key": (
            armor(wire_of(key, blob=string(b"ssh-ed25519") + string(bytes(31)))),
            "an ssh-ed25519 key is not a canonical point of large order",
        ),
        "token without flags": (
            armor(wire_of(key, blob=sk.blob, inner=string(SK_ED25519.encode()) + string(bytes(64)))),
            EARLY,
        ),
    }


def test_strict_parsing(key: Key) -> None:
    for case, (slot, message) in (bad_armor(key) | bad_wire(key)).items():
        with pytest.raises(TrustError) as caught:
            parse_signatures(slot)
        assert str(caught.value).startswith(message), case
        assert caught.value.exit_code == 4


def test_an_unsupported_key_type_has_a_hint(key: Key) -> None:
    with pytest.raises(TrustError) as caught:
        parse_signatures(bad_wire(key)["RSA"][0])
    assert caught.value.hint == "use ssh-ed25519 or sk-ssh-ed25519@openssh.com"


@given(st.binary(max_size=300))
def test_any_wire_ends_in_a_trust_error(wire: bytes) -> None:
    with pytest.raises(TrustError):
        parse_signatures(armor(b"SSHSIG\0\0\0\x01" + wire))


def test_parse_public_key_refuses_contradictions(key: Key) -> None:
    _, text = key.public.line.split()
    with pytest.raises(TrustError, match=r"^a key line says ssh-rsa but its key is ssh-ed25519$"):
        parse_public_key("ssh-rsa", text)
    with pytest.raises(TrustError, match=r"^a key or signature is not base64"):
        parse_public_key("ssh-ed25519", "\u00e9" + text[1:])
    with pytest.raises(TrustError, match=r"^a key or signature ends too early$"):
        parse_public_key("ssh-ed25519", "")


def test_public_keys_compare_by_value(key: Key) -> None:
    again = parse_public_key(*key.public.line.split())
    assert again == key.public
    assert isinstance(again, PublicKey)
    assert again.fingerprint.startswith("SHA256:")
    assert len(again.fingerprint) == 50
