"""Rotation: the signers that a bundle proposes for the next one, ``[bundle] next-signers`` in the spec."""

from pathlib import Path
from typing import Final

from bundler.lock import LockedFile
from bundler.spec import Spec
from bundler.store import Store
from manifests.errors import SpecError, TrustError
from manifests.trust import parse_allowed_signers

NEXT_SIGNERS_PATH: Final = "config/allowed_signers"


def lock_next_signers(spec: Spec, store: Store) -> LockedFile | None:
    """Have the proposed ``allowed_signers`` in the store; None where the spec names none.

    Raises:
        SpecError: It can't be read, or the closed side would refuse it.
    """
    if not spec.next_signers:
        return None
    path = check_next_signers(spec)
    digest = store.add_file(path)
    return LockedFile(path=NEXT_SIGNERS_PATH, size=digest.size, sha256=digest.sha256, source="folder")


def check_next_signers(spec: Spec) -> Path:
    """Return where the proposed ``allowed_signers`` lies, once it was parsed as the closed side will.

    Raises:
        SpecError: It can't be read, or the closed side would refuse it.
    """
    where, path = f"{spec.path}: bundle.next-signers", spec.resolve_folder(spec.next_signers)
    try:
        parse_allowed_signers(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        hint = "bundler keygen writes such a file: PATH.allowed_signers"
        raise SpecError(f"{where}: {path}: {reason}", hint=hint) from None
    except TrustError as error:
        raise SpecError(f"{where}: {error.message}", hint=error.hint) from None
    return path
