"""Keys: what is written, what is refused, and that OpenSSH and we agree both ways."""

import base64
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from bundler.sealing.keys import allowed_signers_line, check_identity, generate_signer, load_signer, write_key
from manifests.errors import DiskError, TrustError, UsageError
from manifests.sshsig import BUNDLE_NAMESPACE, REHEARSAL_NAMESPACE
from manifests.trust import Problem, parse_allowed_signers, verify_signatures
from tests.factories import NOW

WHO = "release@example.com"
ROOT: Final = Path(__file__).parents[3]


def ssh_keygen(*words: str | Path, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("ssh-keygen")
    assert program is not None, "the tests need ssh-keygen (openssh-client)"
    return subprocess.run([program, *map(str, words)], input=data, capture_output=True, check=False)


def test_write_key_makes_three_files(tmp_path: Path) -> None:
    signer = write_key(tmp_path / "new" / "release", WHO)
    folder = tmp_path / "new"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"release": 0o600, "release.pub": 0o644, "release.allowed_signers": 0o644}
    assert (folder / "release.pub").read_text() == f"{signer.key.line} {WHO}\n"
    assert (folder / "release.allowed_signers").read_text() == f'{WHO} namespaces="sealift-*" {signer.key.line}\n'
    assert load_signer(folder / "release").key == signer.key


def test_ssh_keygen_reads_what_we_write(tmp_path: Path) -> None:
    signer = write_key(tmp_path / "release", WHO)
    assert ssh_keygen("-y", "-f", tmp_path / "release").stdout.decode().strip() == signer.key.line
    told = ssh_keygen("-l", "-f", tmp_path / "release.pub").stdout.decode()
    assert told == f"256 {signer.key.fingerprint} {WHO} (ED25519)\n"


@pytest.mark.parametrize("namespace", [BUNDLE_NAMESPACE, REHEARSAL_NAMESPACE])
def test_ssh_keygen_accepts_our_signature(tmp_path: Path, namespace: str) -> None:
    signer = write_key(tmp_path / "release", WHO)
    (tmp_path / "sig").write_bytes(signer.sign(b"message\n", namespace))
    words = ("-Y", "verify", "-f", tmp_path / "release.allowed_signers", "-I", WHO, "-n", namespace)
    good = ssh_keygen(*words, "-s", tmp_path / "sig", data=b"message\n")
    assert good.returncode == 0, good.stderr
    assert ssh_keygen(*words, "-s", tmp_path / "sig", data=b"Message\n").returncode != 0


def test_our_signature_is_byte_for_byte_what_ssh_keygen_writes(tmp_path: Path) -> None:
    signer = write_key(tmp_path / "release", WHO)
    (tmp_path / "message").write_bytes(b"message\n")
    ssh_keygen("-Y", "sign", "-f", tmp_path / "release", "-n", BUNDLE_NAMESPACE, tmp_path / "message")
    assert (tmp_path / "message.sig").read_bytes() == signer.sign(b"message\n")


def test_keys_of_ssh_keygen_load(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", "comment", "-f", tmp_path / "key")
    signer = load_signer(tmp_path / "key")
    assert (tmp_path / "key.pub").read_text().startswith(signer.key.line)
    trust = parse_allowed_signers(allowed_signers_line(signer.key, WHO), where="trust")
    (found,) = verify_signatures(b"m", signer.sign(b"m"), trust, now=NOW)
    assert (found.principals, found.fingerprint) == (WHO, signer.key.fingerprint)


WITHOUT_BCRYPT: Final = """
import sys
from pathlib import Path
sys.modules["bcrypt"] = None
from bundler.sealing.keys import load_signer
from manifests.errors import TrustError
try:
    load_signer(Path(sys.argv[1]), lambda: "secret")
except TrustError as error:
    print(error.render())
"""


def test_a_passphrase_that_can_t_be_used_without_bcrypt(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "key")
    command = [sys.executable, "-c", WITHOUT_BCRYPT, str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "is protected by a passphrase in a way that can't be undone" in done.stdout
    assert done.stdout.endswith("hint: pip install bcrypt\n")


def test_a_passphrase_is_asked_for_once(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "key")
    asked = []

    def ask(answer: str) -> str:
        asked.append(answer)
        return answer

    assert load_signer(tmp_path / "key", lambda: ask("secret")).key.type == "ssh-ed25519"
    with pytest.raises(TrustError) as caught:
        load_signer(tmp_path / "key", lambda: ask("wrong"))
    assert caught.value.message == f"{tmp_path}/key: wrong passphrase"
    assert caught.value.hint == f"try again; ssh-keygen -y -f {tmp_path}/key asks for the same one"
    with pytest.raises(TrustError) as caught:
        load_signer(tmp_path / "key")
    assert caught.value.message == f"{tmp_path}/key: is protected by a passphrase"
    assert asked == ["secret", "wrong"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    write_key(tmp_path / "key", WHO)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(TrustError) as caught:
        load_signer(tmp_path / "key")
    assert caught.value.render() == (
        f"error: {tmp_path}/key: mode {mode:04o}: others can read this key\n"
        f"hint: chmod 600 {tmp_path}/key; if it was really exposed, make a new key"
    )


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_keys_are_refused(tmp_path: Path, kind: str) -> None:
    ssh_keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / "key")
    with pytest.raises(TrustError) as caught:
        load_signer(tmp_path / "key")
    assert caught.value.message.startswith(f"{tmp_path}/key: not an Ed25519 key")
    assert caught.value.hint == "make one: bundler keygen PATH --identity WHO"


def test_a_hardware_key_s_file_is_refused(tmp_path: Path) -> None:
    def string(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    kind = string(b"sk-ssh-ed25519@openssh.com")
    public = kind + string(bytes(32)) + string(b"ssh:")
    secret = bytes(8) + public + b"\x01" + string(b"handle") + string(b"") + string(b"comment")
    secret += bytes(range(1, 1 + -len(secret) % 8))
    body = b"openssh-key-v1\0" + string(b"none") * 2 + string(b"") + (1).to_bytes(4, "big")
    text = base64.encodebytes(body + string(public) + string(secret))
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + text + b"-----END OPENSSH PRIVATE KEY-----\n"
    )
    with pytest.raises(TrustError) as caught:
        load_signer(tmp_path / "key")
    assert caught.value.message.startswith(f"{tmp_path}/key: not an Ed25519 key")


@pytest.mark.parametrize("text", [b"", b"junk", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_something_that_is_no_key(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(text)
    with pytest.raises(TrustError, match="key: not an OpenSSH private key: "):
        load_signer(tmp_path / "key")


def test_a_key_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_signer(tmp_path / "key")
    assert caught.value.render() == (
        f"error: {tmp_path}/key: no such key\nhint: make one: bundler keygen PATH --identity WHO"
    )
    with pytest.raises(DiskError, match=f"can't read {tmp_path}: Is a directory"):
        load_signer(tmp_path)


@pytest.mark.parametrize("existing", ["key", "key.pub", "key.allowed_signers"])
def test_no_file_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UsageError) as caught:
        write_key(tmp_path / "key", WHO)
    assert caught.value.message == f"{tmp_path / existing} already exists"
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


@pytest.mark.parametrize(
    "identity", ["", "two words", 'quo"te', "a,b", "*@example.com", "a?b", "!a", "#a", "é", "a\tb"]
)
def test_identities_that_could_mean_something_else(tmp_path: Path, identity: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_key(tmp_path / "key", identity)
    assert caught.value.message.startswith(f"identity {identity!r} can't be used: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("identity", [WHO, "builder", "a.b-c_d+e@host"])
def test_identities_that_are_fine(identity: str) -> None:
    check_identity(identity)
    (signer,) = parse_allowed_signers(allowed_signers_line(generate_signer().key, identity), where="x").signers
    assert signer.principals == identity
    assert signer.problem("git", NOW) == Problem("is not allowed in namespace git")
