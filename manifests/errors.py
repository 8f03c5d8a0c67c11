"""The error tree. One root, one exit code for each class.

::

    SealiftError (1)
    |-- UsageError (2)       the command line
    |   `-- SpecError        the spec or the lock, with its key path
    |-- SourceError (3)      network, index, hub, a model's source
    |-- TrustError (4)       signatures and signers
    |-- IntegrityError (5)   digests, malformed, missing and extra files
    |-- HostError (6)        this host does not fit the bundle
    |-- DiskError (7)        space and permissions
    |-- InstallError (8)     the virtual environment, the smoke test
    |-- AdapterError (9)     a model, a probe, the launch
    `-- PolicyError (10)     pickles, remote code, licences, budgets, downgrades

A message says what, where, and expected against got. ``hint`` is the next thing to type or to do.
"""

from typing import ClassVar


class SealiftError(Exception):
    """Anything that Sealift reports to a person instead of a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def render(self) -> str:
        """Return the text that a command line prints: the message, then the hint on a line of its own."""
        text = f"error: {self.message}"
        return f"{text}\nhint: {self.hint}" if self.hint else text


def list_problems(label: str, problems: list[str], *, limit: int = 20) -> str:
    """Return one message for many problems: the first ``limit``, and how many more."""
    more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{label}: {count}:", *problems[:limit], *more])


class UsageError(SealiftError):
    """The command line asks for something that can't be done as it stands."""

    exit_code: ClassVar[int] = 2


class SpecError(UsageError):
    """The spec or the lock is wrong; the message begins with file and key path."""


class SourceError(SealiftError):
    """Something to be fetched can't be had: index, package, wheel or model."""

    exit_code: ClassVar[int] = 3


class TrustError(SealiftError):
    """The bundle isn't signed, or not by anyone who is trusted."""

    exit_code: ClassVar[int] = 4


class IntegrityError(SealiftError):
    """Bytes are not what the signed manifest says."""

    exit_code: ClassVar[int] = 5


class HostError(SealiftError):
    """The host does not fit what the bundle was made for."""

    exit_code: ClassVar[int] = 6


class DiskError(SealiftError):
    """No space, or no permission."""

    exit_code: ClassVar[int] = 7


class InstallError(SealiftError):
    """The release could not be made from verified files."""

    exit_code: ClassVar[int] = 8


class AdapterError(SealiftError):
    """A model does not load, a probe does not answer, the server does not start."""

    exit_code: ClassVar[int] = 9


class PolicyError(SealiftError):
    """A rule written down by the builder or the operator says no."""

    exit_code: ClassVar[int] = 10
