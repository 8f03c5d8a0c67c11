"""The whole corpus."""

from typing import Final

from tests.hostile.contents import CONTENT_ATTACKS
from tests.hostile.documents import DOCUMENT_ATTACKS
from tests.hostile.frames import FRAME_ATTACKS
from tests.hostile.lab import Attack
from tests.hostile.signatures import SLOTS
from tests.hostile.trusts import TRUSTS

CORPUS: Final[tuple[Attack, ...]] = (*FRAME_ATTACKS, *DOCUMENT_ATTACKS, *SLOTS, *TRUSTS, *CONTENT_ATTACKS)
