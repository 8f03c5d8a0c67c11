"""Licences: what METADATA, classifiers and texts say, against an allow-list, and the texts collected in one folder."""

import json
import zipfile
from dataclasses import replace
from email.message import Message
from email.parser import BytesHeaderParser
from io import BytesIO
from pathlib import Path

import pytest

from bundler.contents.compose import compose
from bundler.lock import LockedPython
from bundler.review.licenses import INDEX_PATH, interpreter_texts, load_review, review_wheel
from bundler.review.spdx import canonical_license, identifiers, license_of, licenses_of_text, model_license, satisfies
from bundler.store import Store
from manifests.errors import IntegrityError
from manifests.paths import find_collision
from tests.factories_python import member, tar_gz
from tests.factories_review import BSD, MIT, Sources, clean_lock


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """An empty store."""
    return Sources(store=Store(tmp_path / "cache"), folder=tmp_path / "files")


def headers(text: str) -> Message:
    return BytesHeaderParser().parsebytes(text.encode())


def zip_of(files: dict[str, bytes]) -> BytesIO:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mit", "MIT"),
        ("The MIT License", "MIT"),
        ("Apache License 2.0", "Apache-2.0"),
        ("apache-2.0", "Apache-2.0"),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("BSD", ""),
        ("other", ""),
        ("see license", ""),
        ("Permission is hereby granted " * 20, ""),
    ],
)
def test_short_texts(text: str, expected: str) -> None:
    assert canonical_license(text) == expected


@pytest.mark.parametrize(
    ("metadata", "texts", "expected"),
    [
        ("License-Expression: mit\nLicense: BSD", [], ("MIT", "expression")),
        ("License-Expression: no such\nLicense: MIT", [], ("MIT", "field")),
        ("License: BSD", [BSD.decode()], ("BSD-3-Clause", "text")),
        ("Classifier: License :: OSI Approved :: ISC License (ISCL)", [], ("ISC", "classifiers")),
        (
            "\n".join(
                f"Classifier: License :: OSI Approved :: {name}"
                for name in ("MIT License", "GNU General Public License v3 or later (GPLv3+)")
            ),
            [],
            ("GPL-3.0-or-later AND MIT", "classifiers"),
        ),
        ("Classifier: License :: OSI Approved :: BSD License", [], ("", "")),
        ("Name: x", ["All rights reserved"], ("", "")),
        ("Name: x", [MIT.decode(), BSD.decode()], ("BSD-3-Clause AND MIT", "text")),
    ],
)
def test_what_a_wheel_says(metadata: str, texts: list[str], expected: tuple[str, str]) -> None:
    assert license_of(headers(metadata), texts) == expected


def test_texts_that_are_known() -> None:
    assert licenses_of_text("    GNU GENERAL PUBLIC LICENSE\n       Version 3, 29 June 2007") == {"GPL-3.0-only"}
    assert licenses_of_text("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3, ...") == {"LGPL-3.0-only"}
    assert licenses_of_text("Redistribution and use in source and binary forms, ...") == {"BSD-2-Clause"}
    assert licenses_of_text(MIT.decode() + BSD.decode()) == {"MIT", "BSD-3-Clause"}
    assert licenses_of_text("Copyright 2026") == frozenset()


@pytest.mark.parametrize(
    ("expression", "allowed", "expected"),
    [
        ("MIT", ["mit"], True),
        ("MIT", ["Apache-2.0"], False),
        ("MIT OR GPL-3.0-only", ["MIT"], True),
        ("MIT AND GPL-3.0-only", ["MIT"], False),
        ("MIT AND (ISC OR GPL-3.0-only)", ["MIT", "ISC"], True),
        ("(MIT OR GPL-3.0-only) AND GPL-3.0-only", ["MIT"], False),
        ("GPL-3.0-only OR MIT AND ISC", ["MIT"], False),
        ("Apache-2.0 WITH LLVM-exception", ["Apache-2.0"], True),
        ("GPL-3.0-only WITH GCC-exception-3.1", ["MIT"], False),
        ("GPL-3.0-only WITH GCC-exception-3.1", ["GPL-3.0-only WITH GCC-exception-3.1"], True),
        ("", ["MIT"], False),
        ("(MIT", ["MIT"], False),
        ("MIT MIT", ["MIT"], False),
    ],
)
def test_allow_lists(expression: str, allowed: list[str], expected: bool) -> None:
    assert satisfies(expression, allowed) is expected


def test_names_in_an_expression() -> None:
    expression = "(MIT OR GPL-3.0-only WITH GCC-exception-3.1) AND ISC"
    assert list(identifiers(expression)) == ["MIT", "GPL-3.0-only", "ISC"]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [("apache-2.0", "Apache-2.0"), ("llama3.1", "LicenseRef-llama3.1"), ("other", ""), ("", ""), ("!!", "")],
)
def test_licences_of_models(declared: str, expected: str) -> None:
    assert model_license(declared) == expected


def test_a_wheel_is_looked_into_once(sources: Sources) -> None:
    wheel = sources.wheel(
        "native", files={"native/core.so.1": b"", "native-1.0.dist-info/licenses/a/LICENSE": MIT, "native/NOTICE": b"x"}
    )
    review = load_review(sources.store, wheel.sha256, wheel.path)
    assert (review.license, review.license_from, review.native) == ("MIT", "text", ("native/core.so.1",))
    assert [(text.name, text.size) for text in review.texts] == [("a/LICENSE", len(MIT))]
    with sources.store.open(review.texts[0].sha256) as stream:
        assert stream.read() == MIT
    path = sources.store.path(wheel.sha256)
    path.chmod(0o600)
    path.write_bytes(b"never read again")
    assert load_review(sources.store, wheel.sha256, wheel.path) == review


def test_a_lost_text_and_a_damaged_record_are_made_again(sources: Sources) -> None:
    wheel = sources.wheel("alpha", files={"alpha-1.0.dist-info/LICENSE": MIT})
    review = load_review(sources.store, wheel.sha256, wheel.path)
    sources.store.drop(review.texts[0].sha256)
    assert load_review(sources.store, wheel.sha256, wheel.path) == review
    assert review.texts[0].sha256 in sources.store
    sources.store.write_record("wheel-review-1", wheel.sha256, {"texts": 7})
    assert load_review(sources.store, wheel.sha256, wheel.path) == review


@pytest.mark.parametrize(
    "stream",
    [
        BytesIO(b"no zip"),
        zip_of({"a.py": b""}),
        zip_of({"x-1.dist-info/METADATA": b"x" * (4 * 1024 * 1024 + 1)}),
        zip_of({"x-1.dist-info/METADATA": b"", "x-1.dist-info/LICENSE": b"x" * (8 * 1024 * 1024 + 1)}),
    ],
)
def test_what_is_no_wheel(stream: BytesIO) -> None:
    with pytest.raises(IntegrityError, match=r"^wheels/x\.whl: not in the store as a readable wheel: "):
        review_wheel(stream, "wheels/x.whl")


def test_texts_travel_in_one_folder_with_an_index(sources: Sources) -> None:
    lock = clean_lock(sources)
    composition = compose(lock, sources.store)
    found = {entry.path: entry for entry in composition.manifest.files if entry.path.startswith("docs/licenses/")}
    assert sorted(found) == [
        "docs/licenses/index.json",
        "docs/licenses/models/tiny/LICENSE",
        "docs/licenses/wheels/alpha-1.0/LICENSE",
    ]
    text = found["docs/licenses/wheels/alpha-1.0/LICENSE"]
    with sources.store.open(text.sha256) as stream:
        assert stream.read() == MIT
    assert (text.kind, text.mode, text.size) == ("doc", 0o644, len(MIT))
    index = json.loads(composition.generated[INDEX_PATH])
    assert index["components"][2] == {
        "license": "MIT",
        "license_from": "declared",
        "path": "models/tiny",
        "texts": ["docs/licenses/models/tiny/LICENSE"],
    }
    assert [item["path"] for item in index["components"][:2]] == [
        "bootstrap/uv-1.0-py3-none-any.whl",
        "wheels/alpha-1.0-py3-none-any.whl",
    ]


def test_names_that_can_not_lie_side_by_side_are_numbered(sources: Sources) -> None:
    info = "alpha-1.0.dist-info/licenses"
    texts = {f"{info}/{name}": b"1" for name in ("LICENSE", "license", "LICENSE/inner", "a:b", "CON", "fine/x.txt")}
    lock = clean_lock(sources)
    manifest = compose(replace(lock, wheels=(sources.wheel("alpha", files=texts),)), sources.store).manifest
    folder = "docs/licenses/wheels/alpha-1.0/"
    names = sorted(entry.path.removeprefix(folder) for entry in manifest.files if entry.path.startswith(folder))
    assert names == ["LICENSE", "fine/x.txt", "text-0.txt", "text-2.txt", "text-3.txt", "text-5.txt"]
    assert find_collision(entry.path for entry in manifest.files) is None


PYTHON_TEXT = b"A. HISTORY OF THE SOFTWARE\n"
BOOTSTRAP = "bootstrap/cpython-3.11.9-x86_64-manylinux_2_28.tar.gz"


def python_of(sources: Sources, *texts: str) -> LockedPython:
    """Return a locked interpreter whose archive has texts with these names, and more that is no licence."""
    names = ("bin/python3.11", "lib/python3.11/site.py", "lib/python3.11/lib2to3/LICENSE.txt", *texts)
    contents = [(member(f"python/{name}"), PYTHON_TEXT if name in texts else b"#") for name in names]
    return LockedPython(version="3.11.9", file=sources.put(BOOTSTRAP, tar_gz(iter(contents)), origin="pkg:generic/x@1"))


@pytest.mark.parametrize("name", ["lib/python3.11/LICENSE.txt", "LICENSE.txt", "licenses/LICENSE.openssl-3.txt"])
def test_the_interpreter_s_texts_travel_too(sources: Sources, name: str) -> None:
    lock = replace(clean_lock(sources), python=python_of(sources, name))
    composition = compose(lock, sources.store)
    path = f"docs/licenses/python/cpython-3.11.9/{name}"
    (found,) = (entry for entry in composition.manifest.files if entry.path.startswith("docs/licenses/python/"))
    assert (found.path, found.kind, found.size, found.origin) == (path, "doc", len(PYTHON_TEXT), "pkg:generic/x@1")
    with sources.store.open(found.sha256) as stream:
        assert stream.read() == PYTHON_TEXT
    (listed,) = (
        item for item in json.loads(composition.generated[INDEX_PATH])["components"] if item["path"] == BOOTSTRAP
    )
    assert listed == {"license": "Python-2.0", "license_from": "declared", "path": BOOTSTRAP, "texts": [path]}


def test_an_archive_is_looked_into_once(sources: Sources) -> None:
    lock = replace(clean_lock(sources), python=python_of(sources, "lib/python3.11/LICENSE.txt"))
    assert lock.python is not None
    texts = interpreter_texts(lock, sources.store)
    assert [text.name for text in texts] == ["lib/python3.11/LICENSE.txt"]
    archive = sources.store.path(lock.python.file.sha256)
    content = archive.read_bytes()
    archive.chmod(0o600)
    archive.write_bytes(b"never read again")
    assert interpreter_texts(lock, sources.store) == texts
    archive.write_bytes(content)
    sources.store.drop(texts[0].sha256)
    assert interpreter_texts(lock, sources.store) == texts
    assert texts[0].sha256 in sources.store, "a lost text is made again"
    sources.store.write_record("interpreter-licenses-1", lock.python.file.sha256, {"texts": 7})
    assert interpreter_texts(lock, sources.store) == texts, "a damaged record counts as none"
    sources.store.drop(lock.python.file.sha256)
    sources.store.drop(texts[0].sha256)
    with pytest.raises(IntegrityError) as caught:
        interpreter_texts(lock, sources.store)
    assert caught.value.message == "the interpreter's archive is not in the store: No such file or directory"


def test_an_archive_without_a_text_is_listed_without(sources: Sources) -> None:
    lock = replace(clean_lock(sources), python=python_of(sources))
    composition = compose(lock, sources.store)
    assert not [entry.path for entry in composition.manifest.files if entry.path.startswith("docs/licenses/python/")]
    listed = [item for item in json.loads(composition.generated[INDEX_PATH])["components"] if item["path"] == BOOTSTRAP]
    assert [item["texts"] for item in listed] == [[]]
