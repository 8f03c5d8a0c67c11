"""The simple repository API: HTML (PEP 503) and JSON (PEP 691, 700), with the metadata of wheels (PEP 658, 714)."""

import json
import os
import threading
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from html import escape
from typing import Final, Literal
from urllib.parse import quote

from manifests.digests import sha256_hex
from manifests.errors import IntegrityError
from runtime.mirror.catalog import Catalog, Wheel, by_project

JSON_TYPE: Final = "application/vnd.pypi.simple.v1+json"
HTML_TYPE: Final = "application/vnd.pypi.simple.v1+html"
Form = Literal["json", "html"]
_LARGEST_METADATA: Final = 16 * 1024 * 1024
_PAGE: Final = (
    '<!DOCTYPE html>\n<html>\n<head>\n<meta name="pypi:repository-version" content="1.0">\n'
    "<title>{title}</title>\n</head>\n<body>\n{lines}\n</body>\n</html>\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The METADATA of a wheel, its sha256, and the Pythons that it asks for (empty where it doesn't)."""

    content: bytes
    sha256: str
    requires_python: str


class Index:
    """The pages of an index. Wheels are opened when their page is first asked for; what was read is kept."""

    def __init__(self, catalog: Catalog) -> None:
        self.projects = by_project(catalog.wheels.values())
        self._wheels = catalog.wheels
        self._read: dict[str, Metadata | None] = {}
        self._lock = threading.Lock()

    def listing(self, form: Form) -> bytes:
        """Return the page of all projects."""
        if form == "json":
            document = {"meta": {"api-version": "1.1"}, "projects": [{"name": name} for name in self.projects]}
            return _encode(document)
        return _page("Simple index", (f'<a href="{quote(name)}/">{escape(name)}</a><br>' for name in self.projects))

    def project(self, name: str, form: Form) -> bytes:
        """Return the page of one of :attr:`projects`; its links are relative to ``/simple/NAME/``.

        Raises:
            IntegrityError: A wheel was changed since the install, or is none.
        """
        wheels = self.projects[name]
        if form == "html":
            return _page(f"Links for {name}", map(self._anchor, wheels))
        versions = sorted({wheel.version for wheel in wheels})
        files = [self._file(wheel) for wheel in wheels]
        return _encode({"meta": {"api-version": "1.1"}, "name": name, "versions": versions, "files": files})

    def metadata(self, filename: str) -> Metadata | None:
        """Return the metadata of one of the catalog's wheels, None where it has none.

        Raises:
            IntegrityError: The wheel was changed since the install, or is none.
        """
        with self._lock:
            if filename not in self._read:
                self._read[filename] = read_metadata(self._wheels[filename])
            return self._read[filename]

    def _file(self, wheel: Wheel) -> dict[str, object]:
        metadata, entry = self.metadata(wheel.filename), wheel.file.entry
        found: dict[str, object] = {
            "filename": wheel.filename,
            "url": f"../../wheels/{quote(wheel.filename)}",
            "hashes": {"sha256": entry.sha256},
            "size": entry.size,
        }
        if metadata is not None:
            found["core-metadata"] = found["dist-info-metadata"] = {"sha256": metadata.sha256}
            if metadata.requires_python:
                found["requires-python"] = metadata.requires_python
        return found

    def _anchor(self, wheel: Wheel) -> str:
        metadata = self.metadata(wheel.filename)
        more = ""
        if metadata is not None:
            value = f'"sha256={metadata.sha256}"'
            more = f" data-core-metadata={value} data-dist-info-metadata={value}"
            if metadata.requires_python:
                more = f' data-requires-python="{escape(metadata.requires_python)}"{more}'
        href = f"../../wheels/{quote(wheel.filename)}#sha256={wheel.file.entry.sha256}"
        return f'<a href="{href}"{more}>{escape(wheel.filename)}</a><br>'


def read_metadata(wheel: Wheel) -> Metadata | None:
    """Return the METADATA out of a wheel, None where there isn't exactly one, or it is larger than 16 MiB.

    Raises:
        IntegrityError: The wheel was changed since the install, or isn't a zip file.
    """
    with os.fdopen(wheel.file.open(), "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                names = [info for info in archive.infolist() if _is_metadata(info.filename)]
                if len(names) != 1 or names[0].file_size > _LARGEST_METADATA:
                    return None
                content = archive.read(names[0])
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            msg = f"{wheel.filename}: signed like this, but not a wheel: {error}"
            raise IntegrityError(msg, hint="the bundle has to be built anew") from None
    value = BytesHeaderParser().parsebytes(content).get("Requires-Python", "")
    return Metadata(content=content, sha256=sha256_hex(content), requires_python=" ".join(str(value).split()))


def _is_metadata(name: str) -> bool:
    folder, _, file = name.partition("/")
    return folder.endswith(".dist-info") and file == "METADATA"


def _encode(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _page(title: str, lines: Iterable[str]) -> bytes:
    return _PAGE.format(title=escape(title), lines="\n".join(lines)).encode()
