"""Taking single pieces out of a bundle, for a copy of it that was damaged on its way or on a disk."""

import json
import os
import re
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.bundle import carried_files
from manifests.chunkfile import encode_index
from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError, UsageError
from manifests.files import create_exclusive, disk_error, sync_folder, write_all
from manifests.manifest import parse_manifest
from manifests.medium import Medium, open_medium
from manifests.pieces import Piece, Silent, Transfer, pieces_of
from manifests.reference import Remote
from manifests.sources import Supply

_LINE: Final = re.compile(r"([0-9a-f]{64})(?:\s.*)?")
_HINT: Final = "it is what `runtime repair` printed, with or without --json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """How many pieces were written, and how many bytes of them."""

    pieces: int
    size: int


def parse_chunk_list(text: str, *, where: str) -> list[str]:
    """Return the digests that ``runtime repair`` printed, each once, in order.

    Args:
        text: Its lines, ``#`` for comments, or its JSON document.
        where: What messages call it.

    Raises:
        UsageError: Not such a list, or an empty one.
    """
    lines = _json_digests(text, where) if text.lstrip().startswith("{") else text.splitlines()
    digests = []
    for number, line in enumerate(lines, start=1):
        words = line.strip()
        if words and not words.startswith("#"):
            match = _LINE.fullmatch(words)
            if match is None:
                raise UsageError(f"{where}:{number}: not a digest: {words[:80]!r}", hint=_HINT)
            digests.append(match[1])
    if not digests:
        raise UsageError(f"{where}: lists no chunk", hint=_HINT)
    return list(dict.fromkeys(digests))


def _json_digests(text: str, where: str) -> list[str]:
    try:
        rows = json.loads(text)["damaged"]
        return [str(row["sha256"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{where}: not the JSON document of runtime repair", hint=_HINT) from None


def extract_chunks(
    bundle: Path | Remote, digests: Sequence[str], output: Path, supply: Supply | None = None
) -> Extracted:
    """Write a repair file with the pieces of ``bundle`` that have these digests; ``supply`` as for ``open_medium``.

    Raises:
        UsageError: The bundle has no such piece.
        IntegrityError: The bundle is damaged itself.
        DiskError: ``output`` can't be written.
    """
    with open_medium(bundle, supply) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        known = {piece.sha256: piece for entry in carried_files(medium, manifest) for piece in pieces_of(entry)}
        for digest in digests:
            if digest not in known:
                hint = "the list must come from the same bundle"
                raise UsageError(f"{bundle}: has no chunk with the digest {digest}", hint=hint)
        pieces = tuple(known[digest] for digest in digests)
        partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
        try:
            _write(medium, pieces, partial)
            partial.replace(output)
            sync_folder(output.parent)
        except OSError as error:
            raise disk_error(error, f"write {output}") from error
        finally:
            partial.unlink(missing_ok=True)
    return Extracted(pieces=len(pieces), size=sum(piece.size for piece in pieces))


def _write(medium: Medium, pieces: tuple[Piece, ...], partial: Path) -> None:
    transfer, buffer = Transfer(Silent(), threading.Event()), memoryview(bytearray(BUFFER_SIZE))
    with ExitStack() as stack:
        descriptor = create_exclusive(partial, mode=0o644)
        stack.callback(os.close, descriptor)
        index = encode_index(pieces)
        write_all(descriptor, index, 0)
        offset = len(index)
        for piece in pieces:
            with medium.reader(piece.entry) as read:
                got = transfer.check(piece, read, buffer, (descriptor, offset - piece.offset))
            if got != piece.sha256:
                msg = f"{medium.label}: {piece.label}: expected sha256 {piece.sha256}, got {got}"
                raise IntegrityError(msg, hint="take the chunks from a good copy")
            offset += piece.size
        os.fsync(descriptor)
