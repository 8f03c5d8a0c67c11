"""Signing through ssh-agent (draft-miller-ssh-agent): the private key, or the token's button, stays with the agent."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import TrustError, UsageError
from manifests.sshsig import (
    BUNDLE_NAMESPACE,
    ED25519,
    SK_ED25519,
    PublicKey,
    Wire,
    armored_signature,
    parse_key_blob,
    parse_signatures,
    signed_data,
)

AGENT_PREFIX: Final = "agent:"
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_REQUEST_IDENTITIES: Final = 11
_IDENTITIES_ANSWER: Final = 12
_SIGN_REQUEST: Final = 13
_SIGN_RESPONSE: Final = 14
_MOST_BYTES: Final = 256 * 1024  # OpenSSH's own limit for a message
_SECONDS: Final = 120.0  # long enough to find the token and touch it


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSigner:
    """A key that an agent holds. ``comment`` is what the agent calls it."""

    socket_path: Path
    key: PublicKey
    comment: str = ""

    def sign(self, message: bytes, namespace: str = BUNDLE_NAMESPACE) -> bytes:
        """Return the armored SSH signature over ``message``.

        Raises:
            TrustError: The agent refuses, or what it made does not verify.
            UsageError: The agent is gone.
        """
        request = bytes([_SIGN_REQUEST]) + _string(self.key.blob) + _string(signed_data(message, namespace)) + bytes(4)
        with _connected(self.socket_path) as connection:
            answer = _ask(connection, request)
        if answer[:1] != bytes([_SIGN_RESPONSE]):
            hint = "it may want a confirmation, a touch of the token, or be locked (ssh-add -X)"
            raise TrustError(f"the agent refuses to sign with {self.key.fingerprint}", hint=hint)
        block = self._block(answer[1:], namespace)
        (signature,) = parse_signatures(block)
        if not signature.verifies(message, namespace):
            msg = f"the signature that the agent made with {self.key.fingerprint} does not verify"
            raise TrustError(msg, hint="a token has to be touched: user presence is required")
        return block

    def _block(self, answer: bytes, namespace: str) -> bytes:
        outer = Wire(answer)
        inner = Wire(outer.string())
        outer.finish()
        if inner.text() != self.key.type:
            raise TrustError("the agent's signature is of another type than the key")
        raw = inner.string()
        tail = inner.take(5) if self.key.type == SK_ED25519 else b""  # one byte of flags, a counter of four
        inner.finish()
        return armored_signature(self.key, raw, namespace, tail=tail)


def load_agent_signer(name: str) -> AgentSigner:
    """Return the key that ``name``, ``agent:SHA256:...``, stands for in the agent of ``SSH_AUTH_SOCK``.

    Raises:
        UsageError: Not of that form, no agent, or an agent without such a key.
        TrustError: The agent's answer is malformed.
    """
    fingerprint = name.removeprefix(AGENT_PREFIX)
    if _FINGERPRINT.fullmatch(fingerprint) is None:
        hint = "ssh-add -l lists what the agent holds: --key agent:SHA256:..."
        raise UsageError(f"{name}: not of the form agent:SHA256:... with the 43 characters of a fingerprint", hint=hint)
    path = os.environ.get("SSH_AUTH_SOCK")
    if not path:
        hint = 'eval "$(ssh-agent)", then ssh-add KEY'
        raise UsageError("there is no ssh-agent here: SSH_AUTH_SOCK isn't set", hint=hint)
    signers = list_agent(Path(path))
    for signer in signers:
        if signer.key.fingerprint == fingerprint:
            return signer
    has = ", ".join(f"{signer.key.fingerprint} {signer.comment}".rstrip() for signer in signers) or "none"
    msg = f"the agent has no Ed25519 key {fingerprint}; it has {has}"
    raise UsageError(msg, hint="ssh-add KEY, then ssh-add -l")


def list_agent(path: Path) -> tuple[AgentSigner, ...]:
    """Return the Ed25519 keys, plain and FIDO, of the agent that listens at ``path``; other types are left out.

    Raises:
        UsageError: Nobody answers there.
        TrustError: The answer is malformed.
    """
    with _connected(path) as connection:
        answer = _ask(connection, bytes([_REQUEST_IDENTITIES]))
    if answer[:1] != bytes([_IDENTITIES_ANSWER]):
        raise TrustError(f"{path}: the agent does not tell which keys it holds", hint="is it locked? ssh-add -X")
    wire, signers = Wire(answer[1:]), []
    for _ in range(wire.integer()):
        blob, comment = wire.string(), wire.string().decode("utf-8", "replace")
        if Wire(blob).string() in {ED25519.encode(), SK_ED25519.encode()}:
            signers.append(AgentSigner(socket_path=path, key=parse_key_blob(blob), comment=comment))
    wire.finish()
    return tuple(signers)


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(str(path))
            yield connection
        except TimeoutError:
            raise UsageError(f"{path}: the agent did not answer within {_SECONDS:.0f} s") from None
        except OSError as error:
            hint = 'eval "$(ssh-agent)", then ssh-add KEY'
            raise UsageError(f"{path}: no ssh-agent answers here: {error.strerror or error}", hint=hint) from None


def _ask(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(_string(request))
    length = int.from_bytes(_receive(connection, 4), "big")
    if not 0 < length <= _MOST_BYTES:
        raise TrustError(f"the agent answers with {length} bytes, expected 1 to {_MOST_BYTES}")
    return _receive(connection, length)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise TrustError("the agent closed the connection before its answer was complete")
        data += part
    return data


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
