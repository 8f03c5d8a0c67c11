"""Signing through ssh-agent: a real agent, and a token in software behind the agent's protocol."""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundler.sealing.agent import AgentSigner, list_agent, load_agent_signer
from bundler.sealing.sign import sign_bundle
from manifests.errors import TrustError, UsageError
from manifests.medium import open_medium
from manifests.sshsig import BUNDLE_NAMESPACE, SK_ED25519, parse_key_blob
from manifests.trust import parse_allowed_signers, verify_signatures
from tests.factories import NOW, SMALL_FILES, Key, make_bundle
from tests.factories_cli import Builder
from tests.factories_closed import program
from tests.manifests.test_sshsig import MESSAGE, Token, string

Answer = Callable[[bytes], bytes]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real ssh-agent, empty; its socket is SSH_AUTH_SOCK."""
    path = tmp_path / "agent.sock"
    process = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it says where it listens once it does
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.communicate(timeout=10)


def ssh_add(*words: str | Path, typed: str = "") -> None:
    done = subprocess.run(
        [program("ssh-add"), *map(str, words)], input=typed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def fill(path: Path) -> bytes:
    with open_medium(path) as medium:
        return medium.signature_slot


@pytest.mark.usefixtures("agent")
def test_a_real_agent_signs_a_bundle(tmp_path: Path, key: Key) -> None:
    ssh_add(key.path)
    tar = make_bundle(tmp_path, SMALL_FILES, key=[])
    signer = load_agent_signer(f"agent:{key.public.fingerprint}")
    assert (signer.key, signer.comment) == (key.public, str(key.path)), "the key file has no comment: ssh-add's own"
    assert sign_bundle(tar, signer).count == 1
    with open_medium(tar) as medium:
        (found,) = verify_signatures(medium.manifest_bytes, medium.signature_slot, key.trust, now=NOW)
        assert found.fingerprint == key.public.fingerprint
        own = Builder(folder=tmp_path).run("sign", tar, "--key", key.path)
        assert own.stdout == f"{tar} has 1 signatures\n", "the same key signed already"


@pytest.mark.usefixtures("agent")
def test_the_agent_s_signature_is_the_key_file_s(tmp_path: Path, key: Key) -> None:
    ssh_add(key.path)
    first, second = (tmp_path / name for name in ("first.tar", "second.tar"))
    for path, name in ((first, str(key.path)), (second, f"agent:{key.public.fingerprint}")):
        make_bundle(path, SMALL_FILES, key=[])
        builder = Builder(folder=tmp_path, variables={"SSH_AUTH_SOCK": os.environ["SSH_AUTH_SOCK"]})
        done = builder.run("sign", path, "--key", name)
        assert done.returncode == 0, done.stderr
    assert first.read_bytes() == second.read_bytes(), "Ed25519 is deterministic"


@pytest.mark.usefixtures("agent")
def test_a_key_that_the_agent_does_not_have(key: Key, second_key: Key, tmp_path: Path) -> None:
    subprocess.run([program("ssh-keygen"), "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "other")], check=True)
    ssh_add(tmp_path / "other")
    wanted = f"agent:{key.public.fingerprint}"
    with pytest.raises(UsageError) as caught:
        load_agent_signer(wanted)
    assert caught.value.message == f"the agent has no Ed25519 key {key.public.fingerprint}; it has none"
    ssh_add(second_key.path)
    with pytest.raises(UsageError) as caught:
        load_agent_signer(wanted)
    fingerprint = second_key.public.fingerprint
    assert caught.value.render() == (
        f"error: the agent has no Ed25519 key {key.public.fingerprint}; it has {fingerprint} {second_key.path}\n"
        "hint: ssh-add KEY, then ssh-add -l"
    )


def test_an_agent_that_was_locked_or_emptied_meanwhile(agent: Path, key: Key) -> None:
    ssh_add(key.path)
    (signer,) = list_agent(agent)
    assert signer.sign(MESSAGE).startswith(b"-----BEGIN SSH SIGNATURE-----\n")
    ssh_add("-D")
    with pytest.raises(TrustError) as caught:
        signer.sign(MESSAGE)
    assert caught.value.message == f"the agent refuses to sign with {key.public.fingerprint}"
    assert list_agent(agent) == ()


@pytest.mark.parametrize("name", ["agent:", "agent:MD5:00", "agent:SHA256:short", "agent:SHA256:" + "!" * 43])
def test_what_is_no_fingerprint(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_agent_signer(name)
    assert caught.value.message.startswith(f"{name}: not of the form agent:SHA256:...")
    assert caught.value.hint == "ssh-add -l lists what the agent holds: --key agent:SHA256:..."


def test_no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Key) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    name = f"agent:{key.public.fingerprint}"
    with pytest.raises(UsageError) as caught:
        load_agent_signer(name)
    assert caught.value.render() == (
        'error: there is no ssh-agent here: SSH_AUTH_SOCK isn\'t set\nhint: eval "$(ssh-agent)", then ssh-add KEY'
    )
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    with pytest.raises(UsageError) as caught:
        load_agent_signer(name)
    assert caught.value.message == f"{tmp_path}/gone: no ssh-agent answers here: No such file or directory"


def test_the_command_line_without_an_agent(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, SMALL_FILES, key=[])
    builder = Builder(folder=tmp_path, variables={"SSH_AUTH_SOCK": ""})
    code, words = builder.refused("sign", tar, "--key", f"agent:{key.public.fingerprint}")
    assert code == 2
    assert words.startswith("error: there is no ssh-agent here: SSH_AUTH_SOCK isn't set\n")
    assert fill(tar).strip(b"\n") == b""


class SoftAgent:
    """Speaks the agent's protocol on a real socket; ``answers`` say what to reply, in order, one a connection."""

    def __init__(self, path: Path, *answers: Answer) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answers = answers
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rb") as stream:
                request = stream.read(int.from_bytes(stream.read(4), "big"))
                self.requests.append(request)
                connection.sendall(answer(request))

    def close(self) -> None:
        """Wait until every answer was asked for."""
        self._thread.join(timeout=10)
        self._listener.close()
        assert not self._thread.is_alive()


def token_signature(token: Token, *, flags: int = 1) -> Answer:
    """Answer a request to sign as an agent with a FIDO token does."""

    def answer(request: bytes) -> bytes:
        assert request[0] == 13
        assert request[1:].startswith(string(token.blob))
        block = token.sign(MESSAGE, flags=flags)
        import base64  # noqa: PLC0415 # only here

        wire = base64.b64decode(b"".join(block.splitlines()[1:-1]))
        inner = wire[wire.index(string(b"sha512")) + len(string(b"sha512")) :]  # a string already
        return string(b"\x0e" + inner)

    return answer


def test_a_token_behind_an_agent(tmp_path: Path) -> None:
    token = Token()
    listing = string(b"\x0c" + (1).to_bytes(4, "big") + string(token.blob) + string(b"my token"))
    server = SoftAgent(tmp_path / "sock", lambda _: listing, token_signature(token))
    (signer,) = list_agent(tmp_path / "sock")
    assert (signer.key.type, signer.comment) == (SK_ED25519, "my token")
    block = signer.sign(MESSAGE)
    server.close()
    assert block == token.sign(MESSAGE)
    trust = parse_allowed_signers(f"who {token.line}", where="trust")
    assert len(verify_signatures(MESSAGE, block, trust, namespace=BUNDLE_NAMESPACE, now=NOW)) == 1


def test_a_token_that_was_not_touched(tmp_path: Path) -> None:
    token = Token()
    server = SoftAgent(tmp_path / "sock", token_signature(token, flags=0))
    signer = AgentSigner(socket_path=tmp_path / "sock", key=parse_key_blob(token.blob))
    with pytest.raises(TrustError) as caught:
        signer.sign(MESSAGE)
    server.close()
    assert caught.value.message == (f"the signature that the agent made with {signer.key.fingerprint} does not verify")
    assert caught.value.hint == "a token has to be touched: user presence is required"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the agent closed the connection before its answer was complete"),
        (bytes(4), "the agent answers with 0 bytes, expected 1 to 262144"),
        (b"\xff" * 4, "the agent answers with 4294967295 bytes, expected 1 to 262144"),
        (string(b"\x05"), "SOCK: the agent does not tell which keys it holds"),
        (string(b"\x0c"), "a key or signature ends too early"),
        (string(b"\x0c" + bytes(3) + b"\x01" + string(b"") + string(b"")), "a key or signature ends too early"),
        (string(b"\x0c" + bytes(4) + b"x"), "a key or signature has bytes left over"),
    ],
)
def test_an_agent_that_talks_nonsense(tmp_path: Path, answer: bytes, message: str) -> None:
    server = SoftAgent(tmp_path / "sock", lambda _: answer)
    with pytest.raises(TrustError) as caught:
        list_agent(tmp_path / "sock")
    server.close()
    assert caught.value.message == message.replace("SOCK", str(tmp_path / "sock"))


@pytest.mark.parametrize("inner", [b"", string(b"ssh-rsa") + string(bytes(64)), string(b"ssh-ed25519") + string(b"x")])
def test_a_signature_that_is_nonsense(tmp_path: Path, key: Key, inner: bytes) -> None:
    server = SoftAgent(tmp_path / "sock", lambda _: string(b"\x0e" + string(inner)))
    with pytest.raises(TrustError, match=r"ends too early|another type than the key|signature bytes, expected 64"):
        AgentSigner(socket_path=tmp_path / "sock", key=key.public).sign(MESSAGE)
    server.close()
