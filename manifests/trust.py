"""Who is trusted: OpenSSH's ``allowed_signers`` (ssh-keygen(1), ALLOWED SIGNERS), and the one decision made with it.

Trust reaches the closed side by another way than the bundle. A signature counts when its key is listed for the
namespace, is valid at the time of the check, is not revoked and verifies; a threshold counts distinct keys.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from manifests.errors import TrustError, UsageError
from manifests.sshsig import BUNDLE_NAMESPACE, PublicKey, SshSignature, parse_public_key, parse_signatures

_CLOCK: Final = "%Y-%m-%d %H:%M:%SZ"
_OPTION: Final = re.compile(r'([A-Za-z-]+)(?:="([^"]*)")?(,|(?=[ \t]))')
_KEY_TYPES: Final = re.compile(r"(?:sk-)?(?:ssh|ecdsa)-[A-Za-z0-9@.-]+")
_TIME_HINT: Final = (
    "compare this host's clock (date -u); if it is right, ask the builder to sign with a key that is valid"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a signature doesn't count, and what to do about it where that isn't comparing fingerprints."""

    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedSigner:
    """One line of ``allowed_signers``. Times are UTC; None where the line sets no limit."""

    principals: str
    key: PublicKey
    namespaces: tuple[str, ...] = ()
    valid_after: datetime | None = None
    valid_before: datetime | None = None

    def problem(self, namespace: str, now: datetime) -> Problem | None:
        """Return why this signer may not sign in ``namespace`` at ``now``, or None."""
        if self.namespaces and not _matches_list(self.namespaces, namespace):
            return Problem(f"is not allowed in namespace {namespace}")
        clock = f"judged at {now:{_CLOCK}}"
        if self.valid_after is not None and now < self.valid_after:
            return Problem(f"is valid only after {self.valid_after:{_CLOCK}}, {clock}", _TIME_HINT)
        if self.valid_before is not None and now > self.valid_before:
            return Problem(f"was valid only before {self.valid_before:{_CLOCK}}, {clock}", _TIME_HINT)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRoot:
    """All allowed signers, and the keys that were revoked."""

    signers: tuple[AllowedSigner, ...]
    revoked: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSigner:
    """A signer whose signature counted: principals as listed, and the key's fingerprint."""

    principals: str
    fingerprint: str


def parse_allowed_signers(text: str, *, where: str) -> TrustRoot:
    """Parse the text of an ``allowed_signers`` file.

    Raises:
        TrustError: A line that ssh-keygen would not take, a key type or an option that isn't supported, or no key.
    """
    signers = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines knows ends that ssh-keygen doesn't
        stripped = line.strip(" \t\r")
        if stripped and not stripped.startswith("#"):
            try:
                signers.append(_parse_line(stripped))
            except TrustError as error:
                raise TrustError(f"{where}: line {number}: {error.message}", hint=error.hint) from None
    if not signers:
        raise TrustError(f"{where}: lists no signer", hint="bundler keygen writes such a file: PATH.allowed_signers")
    return TrustRoot(signers=tuple(signers))


def verify_signatures(
    message: bytes,
    slot: bytes,
    trust: TrustRoot,
    *,
    namespace: str = BUNDLE_NAMESPACE,
    threshold: int = 1,
    now: datetime,
) -> tuple[VerifiedSigner, ...]:
    """Decide whether ``message`` is trusted.

    Returns:
        The signers that count, one for each distinct key, at least ``threshold``.

    Raises:
        TrustError: Unsigned, malformed, signed by nobody who is trusted, a bad signature of someone who is, or too few.
        UsageError: A threshold below 1, which would trust anything.
    """
    if threshold < 1:
        raise UsageError(f"{threshold} signatures asked for, at least 1 is needed")
    signatures = parse_signatures(slot)
    if not signatures:
        raise TrustError("the bundle is not signed", hint="on the builder's side: bundler sign BUNDLE --key FILE")
    counted: dict[bytes, VerifiedSigner] = {}
    problems: list[Problem] = []
    for signature in signatures:
        verdict = _judge(message, signature, trust, namespace, now)
        if isinstance(verdict, VerifiedSigner):
            counted[signature.key.point] = verdict  # the point: one secret key in two wrappings is one signer
        else:
            problems.append(verdict)
    if len(counted) < threshold:
        hints = {problem.hint for problem in problems} or {_TOO_FEW_HINT}
        hint = hints.pop() if len(hints) == 1 else ""  # whoever adds a block doesn't choose what is advised
        raise TrustError(_explain(counted.values(), problems, threshold), hint=hint or _HINT)
    return tuple(counted.values())


_LINE_HINT: Final = "give the allowed_signers file of the kit; a .pub file is not one, since it doesn't say who"
_HINT: Final = "compare fingerprints with the builder by another way than the medium (ssh-keygen -l -f KEY.pub)"
_TOO_FEW_HINT: Final = "ask for the signatures that are missing: bundler sign BUNDLE --key FILE, by someone else's key"
_REVOKED_HINT: Final = "ask the builder for a signature by a key that isn't revoked"


def _judge(
    message: bytes, signature: SshSignature, trust: TrustRoot, namespace: str, now: datetime
) -> VerifiedSigner | Problem:
    """Return the signer if the signature counts, else why not; a bad signature of a listed key is an error at once."""
    fingerprint = signature.key.fingerprint
    listed = [signer for signer in trust.signers if signer.key.blob == signature.key.blob]
    if not listed:
        return Problem(f"key {fingerprint} is not among the allowed signers")
    if signature.key.blob in trust.revoked:
        return Problem(f"key {fingerprint} ({listed[0].principals}) is revoked", _REVOKED_HINT)
    if signature.namespace != namespace:
        return Problem(f"key {fingerprint} signed for namespace {signature.namespace!r}, expected {namespace!r}")
    if not signature.verifies(message, namespace):
        who = f"{listed[0].principals} ({fingerprint})"
        msg = f"the signature by {who} does not fit the manifest: one of the two was changed"
        raise TrustError(msg, hint="copy the bundle again from its source, and report this if it happens twice")
    problems = []
    for signer in listed:
        problem = signer.problem(namespace, now)
        if problem is None:
            return VerifiedSigner(principals=signer.principals, fingerprint=fingerprint)
        problems.append(problem)
    first = problems[0]
    return replace(first, text=f"key {fingerprint} ({listed[0].principals}) {first.text}")


def _explain(counted: Iterable[VerifiedSigner], problems: Iterable[Problem], threshold: int) -> str:
    good = [f"{signer.principals} ({signer.fingerprint})" for signer in counted]
    have = f"{len(good)} of {threshold} trusted signatures"
    return "; ".join(
        [f"the bundle has {have}", *(f"good: {name}" for name in good), *(problem.text for problem in problems)]
    )


def _parse_line(line: str) -> AllowedSigner:
    principals, rest = _quoted(line) if line.startswith('"') else _partition(line)
    options, rest = ({}, rest) if _KEY_TYPES.match(rest) else _parse_options(rest)
    type_name, rest = _partition(rest)
    if not rest:
        raise TrustError("expected PRINCIPALS [OPTIONS] KEYTYPE BASE64", hint=_LINE_HINT)
    _check_options(options)
    return AllowedSigner(
        principals=principals,
        key=parse_public_key(type_name, _partition(rest)[0]),
        namespaces=tuple(options["namespaces"].split(",")) if "namespaces" in options else (),
        valid_after=parse_time(options["valid-after"]) if "valid-after" in options else None,
        valid_before=parse_time(options["valid-before"]) if "valid-before" in options else None,
    )


def _partition(text: str) -> tuple[str, str]:
    """Return the first word, and the rest without the blanks between; only space and tab part words, as in OpenSSH."""
    word = re.split(r"[ \t]", text, maxsplit=1)[0]
    return word, text[len(word) :].lstrip(" \t")


def _parse_options(text: str) -> tuple[dict[str, str], str]:
    options: dict[str, str] = {}
    while match := _OPTION.match(text):
        name = match[1].lower()
        if name in options:
            raise TrustError(f"option {name} appears twice")
        options[name] = match[2] if match[2] is not None else ""
        text = text[match.end() :]
        if match[3] != ",":
            return options, text.lstrip(" \t")
    raise TrustError("expected PRINCIPALS [OPTIONS] KEYTYPE BASE64", hint=_LINE_HINT)


def _quoted(line: str) -> tuple[str, str]:
    principals, quote, rest = line[1:].partition('"')
    if not quote:
        raise TrustError("a quotation mark is not closed")
    return principals, rest.lstrip(" \t")


def _check_options(options: dict[str, str]) -> None:
    if "cert-authority" in options:
        raise TrustError("cert-authority isn't supported", hint="list the signers' own keys")
    if unknown := options.keys() - {"namespaces", "valid-after", "valid-before"}:
        raise TrustError(f"unknown option {min(unknown)!r}")
    if options.get("namespaces") == "":
        raise TrustError("option namespaces is empty")


def parse_time(text: str) -> datetime:
    """Parse ``YYYYMMDD[HHMM[SS]][Z]`` as ssh-keygen does: local time unless it ends in Z. Returns UTC."""
    digits, utc = text.removesuffix("Z"), text.endswith("Z")
    if re.fullmatch("[0-9]+", digits) is None:
        digits = ""
    forms = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
    try:
        naive = datetime.strptime(digits, forms[len(digits)])  # noqa: DTZ007 # the zone is set in the next line
        return naive.replace(tzinfo=UTC) if utc else naive.astimezone(UTC)
    except (KeyError, ValueError, OverflowError):  # OverflowError: the last day of year 9999 in a zone west of UTC
        raise TrustError(f"{text!r} is not a time of the form YYYYMMDD[HHMM[SS]][Z]") from None


def _matches_list(patterns: Iterable[str], text: str) -> bool:
    # OpenSSH's match_pattern_list: a negated pattern that matches wins over all others.
    found = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if _matches(pattern[1:], text):
                return False
        elif _matches(pattern, text):
            found = True
    return found


def _matches(pattern: str, text: str) -> bool:
    # OpenSSH's match_pattern: only * and ? are special, so fnmatch, which knows brackets too, won't do.
    regex = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.fullmatch(regex, text) is not None
