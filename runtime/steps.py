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
    "wheels stored",
    "file linked",
    "wheels linked",
    "venv made",
    "venv checked",
    "smoke tested",
    "store filled",
    "files linked",
    "manifest written",
    "signature written",
    "settings written",
    "synced",
    "receipt written",
    "logged",
    "state written",
    "live",
)
"""The environment is made in a thread of its own, from ``wheels linked`` on: its steps come at any time until
``settings written``."""

ENVIRONMENT_STEPS: Final = ("venv made", "venv checked", "smoke tested")

REPAIR_STEPS: Final = (
    "receipt aside",
    "cache dropped",
    *ENVIRONMENT_STEPS,
    "synced",
    "receipt rewritten",
    "receipt back",
)
"""What a repair does to a release whose environment it makes anew."""


def go_on(_step: str) -> None:
    """Do nothing: the checkpoint of every run that nobody stops."""
