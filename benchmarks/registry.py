"""Every section of the benchmark, in the order in which they run."""

from collections.abc import Mapping
from typing import Final

from benchmarks.embeddings import EMBEDDINGS
from benchmarks.fetching import FETCHING
from benchmarks.mirroring import MIRRORING
from benchmarks.packing import PACKING
from benchmarks.rebuilding import REBUILDING
from benchmarks.registry_transfer import TRANSFER
from benchmarks.rollout import FLEET
from benchmarks.sections import CORE, Section
from benchmarks.serving import SERVING

SECTIONS: Final[Mapping[str, Section]] = {
    **CORE,
    **REBUILDING,
    **FETCHING,
    **PACKING,
    **EMBEDDINGS,
    **SERVING,
    **MIRRORING,
    **TRANSFER,
    **FLEET,
}
"""Name -> section."""
