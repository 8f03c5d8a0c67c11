"""The marked steps of the programs that change a prefix: where a test may stop them, in the order they come.

Whoever changes a prefix calls its ``checkpoint`` with one of these names right after the step. The product passes
:func:`go_on`; a test passes a function of its own, such as one that kills the process.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

Checkpoint: TypeAlias = Callable[[str], None]

INSTALL_STEPS: Final = (
    "locked",
    "swept",
    "piece written",
    "blob checked",
    "blob stored",
    "store filled",
    "file linked",
    "files linked",
    "manifest written",
    "signature written",
    "venv made",
    "smoke tested",
    "settings written",
    "synced",
    "receipt written",
    "logged",
    "state written",
    "live",
)


def go_on(_step: str) -> None:
    """Do nothing: the checkpoint of every run that nobody stops."""
