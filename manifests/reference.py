"""Where a bundle is in a registry: ``oci://HOST[:PORT]/REPOSITORY:TAG``, and how the registry is to be reached."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from manifests.errors import UsageError
from manifests.fields import shown

SCHEME: Final = "oci://"
_FORM: Final = "oci://HOST[:PORT]/REPOSITORY:TAG"
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# The grammar of names is that of the OCI distribution specification, "Pulling manifests".
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One bundle of a registry. ``tag`` is a tag, or ``sha256:`` and 64 hex digits of an OCI manifest."""

    host: str
    repository: str
    tag: str

    @property
    def is_digest(self) -> bool:
        """Whether it names one OCI manifest for ever."""
        return ":" in self.tag

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.repository}{'@' if self.is_digest else ':'}{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to go on with a registry that fails; times in seconds, each delay twice the one before."""

    attempts: int = 5
    first_delay: float = 1.0
    longest_retry_after: float = 600.0
    timeout: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A bundle in a registry, and how to reach it.

    ``plain_http`` talks without TLS; ``ca`` are more certificates to trust, a PEM file; ``stopped`` ends every wait;
    ``report`` is told when something is tried again.
    """

    reference: Reference
    plain_http: bool = False
    ca: Path | None = None
    patience: Patience = Patience()
    stopped: threading.Event = field(default_factory=threading.Event, compare=False)
    report: Callable[[str], None] = field(default=lambda _: None, compare=False)

    def __str__(self) -> str:
        return str(self.reference)

    @property
    def base(self) -> str:
        """The url below which the repository's blobs and manifests are."""
        scheme = "http" if self.plain_http else "https"
        return f"{scheme}://{self.reference.host}/v2/{self.reference.repository}"


def is_reference(text: str) -> bool:
    """Return whether a command line's word names a registry instead of a path."""
    return text.lower().startswith(SCHEME)


def parse_reference(text: str) -> Reference:
    """Parse ``oci://HOST[:PORT]/REPOSITORY:TAG`` or ``...@sha256:HEX``; there is no tag by default.

    Raises:
        UsageError: It is something else.
    """
    host, _, rest = text[len(SCHEME) :].partition("/")
    if "@" in host:
        hint = "logins come from Docker's own file: docker login, podman login, or $REGISTRY_AUTH_FILE"
        raise UsageError(f"{SCHEME}...@{shown(host.rpartition('@')[2])}: a login can't stand in the address", hint=hint)
    repository, tag = _split(rest)
    where = shown(text)
    if not _HOST.fullmatch(host) or int(host.rpartition(":")[2] if re.search(r":[0-9]+$", host) else 1) > 65535:
        raise UsageError(f"{where}: {host!r} is not a host", hint=f"the form is {_FORM}")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _LONGEST:
        raise UsageError(f"{where}: {repository!r} is not a repository: lower-case letters, digits, ._-/", hint=_FORM)
    if not tag:
        raise UsageError(f"{where}: has no tag", hint=f"the form is {_FORM}")
    if not (_DIGEST.fullmatch(tag) if ":" in tag else _TAG.fullmatch(tag)):
        hint = "a tag has letters, digits, . _ and -; write a version's + as _"
        raise UsageError(f"{where}: {tag!r} is not a tag", hint=hint)
    return Reference(host=host, repository=repository, tag=tag)


def _split(rest: str) -> tuple[str, str]:
    if "@" in rest:
        name, _, digest = rest.partition("@")
        before, colon, tag = name.partition(":")
        # A tag beside a digest says nothing more; the digest alone decides.
        return (before if colon and _TAG.fullmatch(tag) else name), (digest if ":" in digest else f"{digest}:")
    name, _, tag = rest.partition(":")
    return name, tag
