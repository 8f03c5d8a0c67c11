"""Keys and signatures on the builder's side: OpenSSH Ed25519 files, read and written by ``cryptography``."""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHPrivateKeyTypes,
    load_ssh_private_key,
)

from manifests.errors import TrustError, UsageError
from manifests.files import disk_error, write_atomic
from manifests.sshsig import BUNDLE_NAMESPACE, PublicKey, armored_signature, parse_public_key, signed_data

_PRINCIPAL_PROBLEM = "an identity has no spaces, quotes, commas or wildcards, such as release@example.com"


class Signer(Protocol):
    """Whoever can sign a bundle: a key file here, or a key that an agent holds (:mod:`bundler.sealing.agent`)."""

    @property
    def key(self) -> PublicKey:
        """The public key."""

    def sign(self, message: bytes, namespace: str = BUNDLE_NAMESPACE) -> bytes:
        """Return the armored SSH signature over ``message``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySigner:
    """A private key that is ready to sign."""

    private: Ed25519PrivateKey
    key: PublicKey

    def sign(self, message: bytes, namespace: str = BUNDLE_NAMESPACE) -> bytes:
        """Return the armored SSH signature over ``message``, the same bytes that ``ssh-keygen -Y sign`` writes."""
        return armored_signature(self.key, self.private.sign(signed_data(message, namespace)), namespace)


def generate_signer() -> KeySigner:
    """Return a new key that exists only in memory."""
    return _signer(Ed25519PrivateKey.generate())


def write_key(path: Path, identity: str) -> KeySigner:
    """Make a key pair: ``PATH`` (mode 0600), ``PATH.pub``, ``PATH.allowed_signers``.

    Raises:
        UsageError: A file is already there, or the identity can't be a principal.
        DiskError: A file can't be written.
    """
    check_identity(identity)
    public, allowed = path.with_name(f"{path.name}.pub"), path.with_name(f"{path.name}.allowed_signers")
    for existing in (path, public, allowed):
        if existing.exists():
            raise UsageError(f"{existing} already exists", hint="a key is never overwritten: choose another PATH")
    signer = generate_signer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"create {path.parent}") from error
    private = signer.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_atomic(path, private, mode=0o600)
    write_atomic(public, f"{signer.key.line} {identity}\n".encode())
    write_atomic(allowed, allowed_signers_line(signer.key, identity).encode())
    return signer


def check_identity(identity: str) -> None:
    """Refuse what ``allowed_signers`` could read as a pattern or as two fields."""
    if not identity or not identity.isascii() or not identity.isprintable() or set(identity) & set(' "*?!,#'):
        raise UsageError(f"identity {identity!r} can't be used: {_PRINCIPAL_PROBLEM}")


def allowed_signers_line(key: PublicKey, identity: str) -> str:
    """Return the line that trusts ``key`` for bundles and rehearsals, and for nothing else."""
    return f'{identity} namespaces="sealift-*" {key.line}\n'


def load_signer(path: Path, ask_passphrase: Callable[[], str] | None = None) -> KeySigner:
    """Load an OpenSSH private key.

    Args:
        path: The key file; one that others can read is refused, as ssh does.
        ask_passphrase: Called once if the key is encrypted.

    Raises:
        TrustError: Not an Ed25519 key in OpenSSH's format, readable by others, or a wrong passphrase.
        UsageError: There is no such file.
    """
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such key", hint="make one: bundler keygen PATH --identity WHO") from None
    except OSError as error:
        raise disk_error(error, f"read {path}") from error
    if data.startswith(b"ssh-"):
        hint = f"give the private key: {path.with_suffix('')}"
        raise UsageError(f"{path}: can't be used to sign: it is a public key", hint=hint)
    if stat.S_IMODE(mode) & 0o077:
        msg = f"{path}: mode {stat.S_IMODE(mode):04o}: others can read this key"
        raise TrustError(msg, hint=f"chmod 600 {path}; if it was really exposed, make a new key")
    return _signer(_load(path, data, ask_passphrase))


def _load(path: Path, data: bytes, ask_passphrase: Callable[[], str] | None) -> Ed25519PrivateKey:
    try:
        private = load_ssh_private_key(data, None)
    except ValueError as error:
        raise TrustError(f"{path}: not an OpenSSH private key: {error}") from None
    except TypeError:  # cryptography's way to say that it is encrypted
        private = _decrypt(path, data, ask_passphrase)
    except UnsupportedAlgorithm as error:
        raise TrustError(f"{path}: not an Ed25519 key: {error}", hint="for a hardware key: --key agent:ID") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise TrustError(f"{path}: not an Ed25519 key", hint="make one: bundler keygen PATH --identity WHO")
    return private


def _decrypt(path: Path, data: bytes, ask_passphrase: Callable[[], str] | None) -> SSHPrivateKeyTypes:
    if ask_passphrase is None:
        raise TrustError(f"{path}: is protected by a passphrase")
    try:
        return load_ssh_private_key(data, ask_passphrase().encode())
    except ValueError:
        msg = f"{path}: wrong passphrase"
        raise TrustError(msg, hint=f"try again; ssh-keygen -y -f {path} asks for the same one") from None
    except UnsupportedAlgorithm as error:  # bcrypt, the key derivation of OpenSSH, is a package of its own
        msg = f"{path}: is protected by a passphrase in a way that can't be undone here: {error}"
        raise TrustError(msg, hint="pip install bcrypt") from None


def _signer(private: Ed25519PrivateKey) -> KeySigner:
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    kind, text = line.split()
    return KeySigner(private=private, key=parse_public_key(kind, text))
