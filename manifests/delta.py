"""What a delta carries of its bundle: ``delta.json``, right behind the signature slot of a bundle that isn't whole.

The manifest and the signature of a delta are those of the full bundle, byte for byte. ``delta.json`` is signed by
nobody and need not be: it only selects. Whatever it leaves out has to be in the prefix's store with the signed digest,
so a lie in it can make an install fail, and nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from manifests.canonical import encode_canonical, parse_canonical
from manifests.errors import IntegrityError, list_problems
from manifests.fields import Fields
from manifests.manifest import VERSION_PATTERN, FileEntry, Manifest

DELTA_NAME: Final = "delta.json"
DELTA_TYPE: Final = "urn:sealift:delta:1"
MAX_DELTA_SIZE: Final = 1_000_000
"""More than the indices of every file that a manifest of 16 MB can list."""
_HEX: Final = r"[0-9a-f]{64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A selection: ``carried`` are indices into the manifest's files, rising; ``base`` is the base's manifest digest.

    ``base_version`` is the base's version, for people.
    """

    base: str
    base_version: str
    carried: tuple[int, ...]

    @property
    def base_label(self) -> str:
        """How messages call the base."""
        return f"version {self.base_version}, manifest digest {self.base}"

    def encode(self) -> bytes:
        """Return the canonical bytes of delta.json."""
        return encode_canonical(
            {
                "_type": DELTA_TYPE,
                "base": self.base,
                "base-version": self.base_version,
                "carried": list(self.carried),
            }
        )

    def files(self, manifest: Manifest) -> tuple[FileEntry, ...]:
        """Return what is carried of ``manifest``, in bundle order.

        Raises:
            IntegrityError: An index has no file, or something of ``bootstrap/`` is left out.
        """
        if self.carried and self.carried[-1] >= len(manifest.files):
            msg = f"{DELTA_NAME}: carried names file {self.carried[-1]}, the manifest has {len(manifest.files)} files"
            raise IntegrityError(msg)
        carried = frozenset(self.carried)
        for index, entry in enumerate(manifest.files):
            if entry.kind == "bootstrap" and index not in carried:
                raise IntegrityError(f"{DELTA_NAME}: leaves {entry.path} out, a delta carries all of bootstrap/")
        return tuple(manifest.files[index] for index in self.carried)


def parse_delta(data: bytes) -> Delta:
    """Parse the bytes of delta.json.

    Raises:
        IntegrityError: Too large, not canonical, of another type, or its indices don't rise.
    """
    document = parse_canonical(data, what=DELTA_NAME, max_size=MAX_DELTA_SIZE)
    kind = document.get("_type") if isinstance(document, Mapping) else None
    if kind != DELTA_TYPE:
        raise IntegrityError(f"{DELTA_NAME}: _type is {str(kind)[:80]!r}, this Sealift reads {DELTA_TYPE!r}")
    fields = Fields(document, where=f"{DELTA_NAME}: ", known=("_type", "base", "base-version", "carried"))
    return Delta(
        base=fields.text("base", pattern=_HEX),
        base_version=fields.text("base-version", pattern=VERSION_PATTERN),
        carried=tuple(_parse_indices(fields)),
    )


def _parse_indices(fields: Fields) -> Iterator[int]:
    last = -1
    for where, index in fields.items("carried"):
        if not isinstance(index, int) or isinstance(index, bool) or index <= last:
            raise IntegrityError(f"{where}: indices are integers that rise, each once")
        yield index
        last = index


def make_delta(manifest: Manifest, base: Manifest, base_digest: str) -> Delta:
    """Return what has to be carried of ``manifest`` to where ``base`` is installed: ``bootstrap/`` and what is new."""
    known = {entry.store_key for entry in base.files}
    carried = (
        index for index, entry in enumerate(manifest.files) if entry.kind == "bootstrap" or entry.store_key not in known
    )
    return Delta(base=base_digest, base_version=base.version, carried=tuple(carried))


def base_error(label: str, delta: Delta, problems: list[str]) -> IntegrityError:
    """Return (not raise) the error that says which base a delta needs; ``problems`` name what isn't there."""
    message = list_problems(f"{label}: is a delta to {delta.base_label}, which is not whole here", problems)
    return IntegrityError(message, hint=f"install its base first: {delta.base_label}")
