"""The whole corpus."""

from typing import Final

from tests.hostile.contents import CONTENT_ATTACKS
from tests.hostile.deltas import DELTA_ATTACKS
from tests.hostile.documents import DOCUMENT_ATTACKS
from tests.hostile.frames import FRAME_ATTACKS
from tests.hostile.lab import Attack
from tests.hostile.signatures import SLOTS
from tests.hostile.trusts import TRUSTS
from tests.hostile.volumes import VOLUME_ATTACKS

CORPUS: Final[tuple[Attack, ...]] = (
    *FRAME_ATTACKS,
    *DOCUMENT_ATTACKS,
    *SLOTS,
    *TRUSTS,
    *CONTENT_ATTACKS,
    *VOLUME_ATTACKS,
    *DELTA_ATTACKS,
)
