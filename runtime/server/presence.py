"""What a server leaves behind while it runs, so that ``runtime health`` finds it: one small JSON file."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from manifests.canonical import Json
from runtime.server.loading import describe
from runtime.server.service import Service


class Presence:
    """The file of one server; without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def update(self, document: Mapping[str, Json]) -> None:
        """Replace the file's content, at once or not at all; a folder that can't be written is no reason to stop."""
        if self._path is None:
            return
        fresh = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            fresh.replace(self._path)

    def remove(self) -> None:
        """Remove the file."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def announced(path: Path | None, url: str) -> Iterator[Presence]:
    """Say from the start who listens where; a server that ends in good order takes the file away again."""
    presence = Presence(path)
    presence.update({"pid": os.getpid(), "url": url, "ready": False})
    try:
        yield presence
    finally:
        presence.remove()


def presence_of(service: Service, url: str, release: Path) -> Mapping[str, Json]:
    """Return what a ready server says of itself: its models, the choices made for them, and what the probes found."""
    models: dict[str, Json] = {name: dict(describe(served)) for name, served in service.loaded().items()}
    own: dict[str, Json] = {"pid": os.getpid(), "url": url, "ready": True, "release": str(release)}
    return {**own, "probed": int(time.time()), "models": models}
