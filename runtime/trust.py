"""The trust that a prefix keeps: ``etc/allowed_signers`` and ``etc/revoked_keys``.

An ``allowed_signers`` that begins with :data:`PIN_LINE` was confirmed by an operator; ``install`` uses it by itself and
never replaces it. One without is the copy that ``install --trust FILE`` leaves for later checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from manifests.bundle import TrustedBundle
from manifests.digests import sha256_hex
from manifests.errors import IntegrityError, TrustError, UsageError
from manifests.files import disk_error, write_atomic
from manifests.revocation import parse_revoked_keys
from manifests.sshsig import ED25519
from manifests.trust import AllowedSigner, TrustRoot, parse_allowed_signers
from runtime.layout import Prefix, Release, exclusive
from runtime.state import record

TRUST_NAME: Final = "allowed_signers"
REVOKED_NAME: Final = "revoked_keys"
PIN_LINE: Final = "# confirmed by the operator; to change it: runtime trust add|remove"
NEXT_SIGNERS_PATH: Final = "config/allowed_signers"
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Signers that a bundle proposes for the next one: the text of the file, those that come, stay and go."""

    text: str
    added: tuple[AllowedSigner, ...]
    kept: tuple[AllowedSigner, ...]
    removed: tuple[AllowedSigner, ...]

    def lines(self) -> list[str]:
        """Return one line for each signer: ``+``, ``-`` or a blank, then as ``ssh-keygen -l``."""
        marked = (("+", self.added), (" ", self.kept), ("-", self.removed))
        return [f"{mark} {fingerprint_line(signer)}" for mark, signers in marked for signer in signers]


def fingerprint_line(signer: AllowedSigner) -> str:
    """Return a signer as ``ssh-keygen -l`` shows its key, the principals in the comment's place."""
    kind = "ED25519" if signer.key.type == ED25519 else "ED25519-SK"
    return f"256 {signer.key.fingerprint} {signer.principals} ({kind})"


def pinned_text(prefix: Prefix) -> str | None:
    """Return the ``allowed_signers`` that an operator confirmed, None where there is none.

    Raises:
        TrustError: It isn't text.
        DiskError: It can't be read.
    """
    path = prefix.etc / TRUST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise TrustError(f"{path}: not an allowed_signers file: it isn't text") from None
    except OSError as error:
        raise disk_error(error, f"read {path}") from error
    return text if text.partition("\n")[0] == PIN_LINE else None


def require_pinned(prefix: Prefix) -> str:
    """Return the confirmed ``allowed_signers``.

    Raises:
        UsageError: ``trust init`` was never run here.
    """
    text = pinned_text(prefix)
    if text is None:
        msg = f"{prefix.path}: no signers were confirmed here with `runtime trust init`"
        raise UsageError(msg, hint=f"runtime trust init ALLOWED_SIGNERS --prefix {prefix.path}, or give --trust FILE")
    return text


def copy_trust(prefix: Prefix, text: str) -> None:
    """Leave a copy of the trust that an install used, unless the prefix has signers that an operator confirmed."""
    if pinned_text(prefix) is None:
        write_atomic(prefix.etc / TRUST_NAME, _without_pin(text).encode())


def prefix_revoked(prefix: Prefix) -> frozenset[bytes]:
    """Return the keys of ``etc/revoked_keys``; none where there is no such file.

    Raises:
        TrustError: The list can't be read to its end.
    """
    path = prefix.etc / REVOKED_NAME
    try:
        return parse_revoked_keys(path.read_bytes(), where=str(path))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise disk_error(error, f"read {path}") from error


def check_fingerprints(signers: Sequence[AllowedSigner], typed: Sequence[str], *, where: str) -> None:
    """Require that an operator typed the fingerprint of each key, and of no other.

    Raises:
        TrustError: One is missing, or fits no key.
    """
    found = {signer.key.fingerprint: signer for signer in signers}
    hint = "compare with what the builder told you; nothing was changed"
    if strange := [text for text in typed if text not in found]:
        has = ", ".join(found)
        raise TrustError(f"{where}: no key has the fingerprint {strange[0]}; the file has {has}", hint=hint)
    if missing := [signer for fingerprint, signer in found.items() if fingerprint not in typed]:
        raise TrustError(f"{where}: not confirmed with --fingerprint: {fingerprint_line(missing[0])}", hint=hint)


def init_signers(prefix: Prefix, text: str, *, where: str) -> tuple[AllowedSigner, ...]:
    """Keep ``text`` as the confirmed signers of a prefix.

    Raises:
        UsageError: It has confirmed signers already.
        TrustError: Not an ``allowed_signers`` file.
    """
    signers = parse_allowed_signers(text, where=where).signers
    with exclusive(prefix, "trust"):
        if pinned_text(prefix) is not None:
            msg = f"{prefix.etc / TRUST_NAME}: signers were confirmed here already"
            raise UsageError(msg, hint="runtime trust add FILE, or trust remove FINGERPRINT")
        _pin(prefix, text, f"trust init {_names(signers)}")
    return signers


def new_signers(prefix: Prefix, text: str, *, where: str) -> tuple[AllowedSigner, ...]:
    """Return those of ``text`` that the prefix doesn't have yet."""
    known = set(parse_allowed_signers(require_pinned(prefix), where=str(prefix.etc / TRUST_NAME)).signers)
    return tuple(signer for signer in parse_allowed_signers(text, where=where).signers if signer not in known)


def add_signers(prefix: Prefix, text: str, *, where: str) -> tuple[AllowedSigner, ...]:
    """Add the lines of ``text`` that are new; return their signers.

    Raises:
        UsageError: ``trust init`` was never run here.
        TrustError: Not an ``allowed_signers`` file.
    """
    with exclusive(prefix, "trust"):
        added = new_signers(prefix, text, where=where)
        if added:
            lines = [line for line, signer in _signer_lines(text) if signer in added]
            _pin(prefix, "\n".join([require_pinned(prefix).rstrip("\n"), *lines]), f"trust add {_names(added)}")
    return added


def remove_signer(prefix: Prefix, fingerprint: str) -> tuple[AllowedSigner, ...]:
    """Remove every line of a key; return its signers.

    Raises:
        UsageError: ``trust init`` was never run here, no line has the key, or no other key would be left.
    """
    with exclusive(prefix, "trust"):
        text = require_pinned(prefix)
        lines = _signer_lines(text)
        gone = [line for line, signer in lines if signer.key.fingerprint == fingerprint]
        if not gone:
            raise UsageError(f"{prefix.path}: no signer has the fingerprint {fingerprint}", hint="runtime trust list")
        if len(gone) == len(lines):
            msg = f"{fingerprint} is the only key that is trusted here"
            raise UsageError(msg, hint=f"add the next one first, or list it in {prefix.etc / REVOKED_NAME}")
        removed = tuple(signer for line, signer in lines if line in gone)
        rest = [line for line in text.split("\n") if line not in gone]
        _pin(prefix, "\n".join(rest), f"trust remove {_names(removed)}")
    return removed


def proposed_rotation(release: Release, bundle: TrustedBundle, old: TrustRoot) -> Rotation | None:
    """Return the signers that an installed bundle proposes, None where it proposes none or those that ``old`` has.

    Raises:
        IntegrityError: The file is not what the manifest says.
        TrustError: It isn't an ``allowed_signers`` file.
    """
    entry = next((entry for entry in bundle.manifest.files if entry.path == NEXT_SIGNERS_PATH), None)
    if entry is None:
        return None
    path = release.path / NEXT_SIGNERS_PATH
    data = path.read_bytes() if entry.size <= _MOST_BYTES else b""
    if sha256_hex(data) != entry.sha256:
        raise IntegrityError(f"{path}: is not what the manifest says, or larger than {_MOST_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise TrustError(f"{path}: not an allowed_signers file: it isn't text") from None
    proposed = parse_allowed_signers(text, where=str(path)).signers
    rotation = Rotation(
        text=text,
        added=tuple(signer for signer in proposed if signer not in old.signers),
        kept=tuple(signer for signer in proposed if signer in old.signers),
        removed=tuple(signer for signer in old.signers if signer not in proposed),
    )
    return rotation if rotation.added or rotation.removed else None


def accept_rotation(prefix: Prefix, rotation: Rotation, release: Release) -> None:
    """Replace the signers of a prefix by those that a bundle proposed; recorded before it happens."""
    what = f"signers accepted from {release.name}: added {_names(rotation.added)}; removed {_names(rotation.removed)}"
    with exclusive(prefix, "trust"):
        _pin(prefix, rotation.text, what)


def with_revoked(trust: TrustRoot, *revoked: frozenset[bytes]) -> TrustRoot:
    """Return ``trust`` with more revoked keys."""
    return replace(trust, revoked=trust.revoked.union(*revoked))


def _pin(prefix: Prefix, text: str, what: str) -> None:
    record(prefix, what)
    write_atomic(prefix.etc / TRUST_NAME, f"{PIN_LINE}\n{_without_pin(text).rstrip(chr(10))}\n".encode())


def _without_pin(text: str) -> str:
    """Return ``text`` without the line that only this module may write."""
    while text.partition("\n")[0] == PIN_LINE:
        text = text.partition("\n")[2]
    return text


def _signer_lines(text: str) -> list[tuple[str, AllowedSigner]]:
    lines = [line for line in text.split("\n") if (rest := line.strip(" \t\r")) and not rest.startswith("#")]
    return [(line, parse_allowed_signers(line, where="line").signers[0]) for line in lines]


def _names(signers: Sequence[AllowedSigner]) -> str:
    return ", ".join(f"{signer.principals} {signer.key.fingerprint}" for signer in signers) or "nobody"
