"""What a reviewer asks of a wheel, and the licence texts of everything, collected for ``docs/licenses/``.

A wheel is looked into once: what was found is a record of the store, and its licence texts are contents of the store.
"""

import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from io import BytesIO
from pathlib import PurePosixPath
from typing import BinaryIO, Final

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from bundler.lock import Lock, LockedFile, LockedModel
from bundler.review.spdx import license_of, model_license
from bundler.store import Store
from manifests.canonical import Json
from manifests.errors import IntegrityError
from manifests.manifest import FileEntry
from manifests.paths import path_problem
from manifests.standalone import read_archive

LICENSES_FOLDER: Final = "docs/licenses"
INDEX_PATH: Final = f"{LICENSES_FOLDER}/index.json"
_RECORD_KIND: Final = "wheel-review-1"
_PYTHON_KIND: Final = "interpreter-licenses-1"
_PYTHON_TEXT: Final = re.compile(r"(?:lib/python3\.[0-9]+/)?LICENSE(?:\.txt)?|licenses/[^/]+")
PYTHON_LICENSE: Final = "Python-2.0"
"""The licence of every CPython."""
_METADATA_LIMIT: Final = 4 * 1024 * 1024
_TEXT_LIMIT: Final = 8 * 1024 * 1024
_MOST_TEXTS: Final = 1000
_NATIVE: Final = re.compile(r".+\.(?:so(?:\.[0-9]+)*|dll|dylib|pyd)", re.IGNORECASE)
_NAMED: Final = re.compile(r"(?:licen[cs]e|notice|copying|copyright|authors)(?![a-z])[^/]*", re.IGNORECASE)
_FOLDERS: Final = ("licenses/", "license_files/")
_UNREADABLE: Final = (OSError, EOFError, StopIteration, KeyError, ValueError, RuntimeError)  # as zipfile raises them


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseText:
    """A licence text in the store; ``name`` is its path within the component."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelReview:
    """What there is to know of a wheel.

    ``license`` is an SPDX expression, empty if unknown; ``license_from`` what says so, see
    :func:`bundler.review.spdx.license_of`; ``native`` are the paths of its native libraries.
    """

    license: str = ""
    license_from: str = ""
    native: tuple[str, ...] = ()
    texts: tuple[LicenseText, ...] = ()


def review_wheel(stream: BinaryIO, label: str) -> tuple[WheelReview, dict[str, bytes]]:
    """Look into a wheel, of which nothing is trusted.

    Returns:
        What was found (without texts), and its licence texts: name -> content.

    Raises:
        IntegrityError: It is no wheel that can be read.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            info = next(name for name in names if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
            headers = BytesHeaderParser().parsebytes(_member(archive, f"{info}METADATA", _METADATA_LIMIT))
            listed = [str(item) for item in headers.get_all("License-File", ())]
            texts = {
                _text_name(name, info): _member(archive, name, _TEXT_LIMIT)
                for name in _text_members(names, info, listed)
            }
    except (*_UNREADABLE, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _unreadable(label, error) from None
    return _review(headers, names, texts), texts


def _unreadable(label: str, error: Exception) -> IntegrityError:
    msg = f"{label}: not in the store as a readable wheel: {error}"
    return IntegrityError(msg, hint="bundler lock SPEC fetches it again")


def _review(headers: Message, names: Iterable[str], texts: Mapping[str, bytes]) -> WheelReview:
    license_, source = license_of(headers, (text.decode("utf-8", "replace") for _, text in sorted(texts.items())))
    native = tuple(sorted(name for name in names if _NATIVE.fullmatch(name)))
    return WheelReview(license=license_, license_from=source, native=native)


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} has more than {limit} bytes")
    return data


def _text_members(names: Iterable[str], info: str, listed: Iterable[str]) -> Iterator[str]:
    wanted = {f"{info}{item}" for item in listed} | {f"{info}licenses/{item}" for item in listed}
    found = [name for name in names if name.startswith(info) and not name.endswith("/")]
    texts = [name for name in found if name in wanted or _is_text(name.removeprefix(info))]
    yield from sorted(set(texts))[:_MOST_TEXTS]


def _is_text(name: str) -> bool:
    return name.startswith(_FOLDERS) or _NAMED.fullmatch(name) is not None


def _text_name(member: str, info: str) -> str:
    name = member.removeprefix(info)
    return next((name.removeprefix(folder) for folder in _FOLDERS if name.startswith(folder)), name)


def load_review(store: Store, sha256: str, filename: str) -> WheelReview:
    """Return what there is to know of a wheel in the store; it is looked into once.

    Raises:
        IntegrityError: It isn't in the store, or is no wheel that can be read.
    """
    known = _parse_record(store.record(_RECORD_KIND, sha256))
    if known is not None and all(text.sha256 in store for text in known.texts):
        return known
    try:
        with store.path(sha256).open("rb") as stream:
            found, contents = review_wheel(stream, filename)
    except OSError as error:
        raise _unreadable(filename, error) from None
    texts = []
    for name, content in sorted(contents.items()):
        digest = store.add_stream(BytesIO(content))
        texts.append(LicenseText(name=name, sha256=digest.sha256, size=digest.size))
    review = WheelReview(
        license=found.license, license_from=found.license_from, native=found.native, texts=tuple(texts)
    )
    store.write_record(_RECORD_KIND, sha256, _record(review))
    return review


def _record(review: WheelReview) -> Json:
    texts: list[Json] = [[text.name, text.sha256, text.size] for text in review.texts]
    return {
        "license": review.license,
        "license_from": review.license_from,
        "native": list(review.native),
        "texts": texts,
    }


def _parse_record(record: Json) -> WheelReview | None:
    """Return a recorded review; a damaged record counts as none."""
    try:
        texts = [LicenseText(name=name, sha256=sha256, size=size) for name, sha256, size in record["texts"]]  # type: ignore[index,call-overload,misc,union-attr,arg-type] # whatever else it is raises here
        return WheelReview(
            license=record["license"],  # type: ignore[index,call-overload,arg-type] # as above
            license_from=record["license_from"],  # type: ignore[index,call-overload,arg-type] # as above
            native=tuple(record["native"]),  # type: ignore[index,call-overload,arg-type] # as above
            texts=tuple(texts),
        )
    except (TypeError, KeyError, ValueError):
        return None


def review_wheels(lock: Lock, store: Store) -> dict[str, WheelReview]:
    """Return bundle path -> review, of every wheel of a lock and of the installer.

    Raises:
        IntegrityError: One isn't in the store, or is no wheel that can be read.
    """
    return {file.path: load_review(store, file.sha256, file.path) for file in (lock.installer, *lock.wheels)}


def interpreter_texts(lock: Lock, store: Store) -> tuple[LicenseText, ...]:
    """Return the licence texts in the archive of a lock's interpreter; they are in the store, and looked for once.

    An ``install_only`` archive has CPython's own, ``lib/python3.N/LICENSE.txt`` (``LICENSE.txt`` on Windows), and those
    of the libraries that are linked into it only where there is a folder ``licenses/``.

    Raises:
        IntegrityError: The archive isn't in the store, or can't be read.
    """
    if lock.python is None:
        return ()
    sha256, label = lock.python.file.sha256, lock.python.file.path
    known = _parse_texts(store.record(_PYTHON_KIND, sha256))
    if known is not None and all(text.sha256 in store for text in known):
        return known
    texts = []
    try:
        with store.path(sha256).open("rb") as stream:
            for member, content in read_archive(stream, label):
                if content is not None and _PYTHON_TEXT.fullmatch(member.path) and member.size <= _TEXT_LIMIT:
                    digest = store.add_stream(BytesIO(content.read()))
                    texts.append(LicenseText(name=member.path, sha256=digest.sha256, size=digest.size))
    except OSError as error:
        msg = f"the interpreter's archive is not in the store: {error.strerror}"
        raise IntegrityError(msg, hint="bundler lock SPEC fetches it again") from None
    store.write_record(_PYTHON_KIND, sha256, [[text.name, text.sha256, text.size] for text in texts])
    return tuple(texts)


def _parse_texts(record: Json) -> tuple[LicenseText, ...] | None:
    """Return recorded texts; a damaged record counts as none."""
    try:
        return tuple(LicenseText(name=name, sha256=sha256, size=size) for name, sha256, size in record)  # type: ignore[misc,union-attr,arg-type] # whatever else it is raises here
    except (TypeError, ValueError):
        return None


def component_of(path: str) -> str:
    """Return ``NAME-VERSION`` of a wheel by its file name, or that name as it is."""
    filename = path.rpartition("/")[2]
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        return filename
    return f"{name}-{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedLicenses:
    """The files of ``docs/licenses/`` that lie in the store, and the content of its ``index.json``."""

    entries: tuple[FileEntry, ...]
    index: bytes


def collect_licenses(
    lock: Lock, reviews: Mapping[str, WheelReview], interpreter: Iterable[LicenseText] = ()
) -> CollectedLicenses:
    """Return every licence text of a bundle; same lock, same bytes.

    Args:
        lock: What travels.
        reviews: As :func:`review_wheels` returns them.
        interpreter: As :func:`interpreter_texts` returns them.
    """
    entries: list[FileEntry] = []
    index: list[Json] = []
    for file in sorted((lock.installer, *lock.wheels), key=lambda file: file.path):
        review = reviews[file.path]
        found = list(_text_entries(f"wheels/{component_of(file.path)}", file, review.texts))
        entries += found
        index.append(_index_item(file.path, review.license, review.license_from, found))
    if lock.python is not None:
        found = list(_text_entries(f"python/cpython-{lock.python.version}", lock.python.file, tuple(interpreter)))
        entries += found
        index.append(_index_item(lock.python.file.path, PYTHON_LICENSE, "declared", found))
    for model in sorted(lock.models, key=lambda model: model.entry.name):
        found = list(_model_entries(model))
        entries += found
        declared = model_license(model.license)
        index.append(_index_item(model.entry.path, declared, "declared" if declared else "", found))
    text = json.dumps({"components": index}, indent=1, sort_keys=True, ensure_ascii=True)
    return CollectedLicenses(entries=tuple(entries), index=f"{text}\n".encode())


def _index_item(path: str, license_: str, source: str, entries: Iterable[FileEntry]) -> Json:
    texts: list[Json] = [entry.path for entry in entries]
    return {"license": license_ or None, "license_from": source or None, "path": path, "texts": texts}


def _text_entries(name: str, file: LockedFile, texts: tuple[LicenseText, ...]) -> Iterator[FileEntry]:
    folder = f"{LICENSES_FOLDER}/{name}"
    names = _safe_names([text.name for text in texts], folder)
    for text in texts:
        path = f"{folder}/{names[text.name]}"
        yield _entry(path, text.size, text.sha256, file.origin)


def _model_entries(model: LockedModel) -> Iterator[FileEntry]:
    prefix, folder = f"{model.entry.path}/", f"{LICENSES_FOLDER}/models/{model.entry.name}"
    listed = model.facts.get("license-files")
    wanted = {f"{prefix}{name}" for name in listed} if isinstance(listed, list) else set()
    for file in model.files:
        if file.path in wanted:
            path = f"{folder}/{file.path.removeprefix(prefix)}"
            yield _entry(path, file.size, file.sha256, file.origin, file.chunks)


def _entry(path: str, size: int, sha256: str, origin: str, chunks: tuple[str, ...] = ()) -> FileEntry:
    return FileEntry(path=path, size=size, sha256=sha256, mode=0o644, kind="doc", origin=origin, chunks=chunks)


def _safe_names(names: list[str], folder: str) -> dict[str, str]:
    """Return names under which texts can lie side by side on any file system; most stay as they are."""
    taken: set[str] = set()
    safe: dict[str, str] = {}
    for number, name in enumerate(sorted(names)):
        folded = name.casefold()
        above = {str(parent) for parent in PurePosixPath(folded).parents}
        is_free = folded not in taken and not any(f"{folded}/" == other[: len(folded) + 1] for other in taken)
        fits = path_problem(f"{folder}/{name}") is None and is_free and not above & taken
        safe[name] = name if fits else f"text-{number}.txt"
        taken.add(safe[name].casefold())
    return safe
