"""The SBOM: valid by CycloneDX's own schema, a function of the lock alone, and read again as what it is: a claim."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.contents.compose import compose
from bundler.lock import LockedFile, LockedPython
from bundler.review.sbom import SBOM_PATH, Listed, confirmed_by, read_sbom, sbom_problem
from bundler.store import Store
from tests.factories_review import CREATED, ORIGIN, Sources, clean_lock, defective_lock


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """An empty store."""
    return Sources(store=Store(tmp_path / "cache"), folder=tmp_path / "files")


def document_of(data: bytes) -> Any:  # noqa: ANN401 # parsed JSON of another's format
    return json.loads(data)


def component(document: Any, ref: str) -> Any:  # noqa: ANN401 # parsed JSON of another's format
    (found,) = [item for item in document["components"] if item["bom-ref"] == ref]
    return found


def properties(item: Any) -> dict[str, str]:  # noqa: ANN401 # parsed JSON of another's format
    return {entry["name"].removeprefix("sealift:"): entry["value"] for entry in item["properties"]}


def test_it_is_valid_and_tells_of_every_component(sources: Sources) -> None:
    lock = defective_lock(sources)
    python = sources.put(
        "bootstrap/cpython.tar.gz", b"not looked into here", source="index https://example.org/a.tar.gz"
    )
    with_python = replace(lock, python=LockedPython(version="3.11.9", file=python))
    from bundler.review.licenses import review_wheels  # noqa: PLC0415 # compose would look into the archive
    from bundler.review.sbom import make_sbom  # noqa: PLC0415 # as above

    data = make_sbom(with_python, review_wheels(lock, sources.store), ())
    assert sbom_problem(data) == ""
    document = document_of(data)
    assert document["specVersion"] == "1.6"
    assert document["metadata"]["timestamp"] == CREATED
    assert document["metadata"]["component"]["name"] == "demo"
    assert {(item["type"], item["name"]) for item in document["components"]} == {
        ("library", "alpha"),
        ("library", "built"),
        ("library", "gpl"),
        ("library", "mystery"),
        ("library", "native"),
        ("machine-learning-model", "example/tiny"),
        ("application", "web"),
        ("application", "uv"),
        ("application", "sealift"),
        ("platform", "cpython"),
    }


def test_a_wheel_says_licence_digest_origin_and_who_confirmed_it(sources: Sources) -> None:
    lock = defective_lock(sources)
    document = document_of(compose(lock, sources.store).generated[SBOM_PATH])
    alpha = component(document, "wheels/alpha-1.0-py3-none-any.whl")
    assert alpha["purl"] == "pkg:pypi/alpha@1.0"
    assert alpha["hashes"] == [{"alg": "SHA-256", "content": lock.wheels[0].sha256}]
    assert alpha["licenses"] == [{"expression": "MIT", "acknowledgement": "declared"}]
    url = "https://index.example/files/alpha-1.0-py3-none-any.whl"
    assert alpha["externalReferences"] == [{"type": "distribution", "url": url}]
    assert properties(alpha)["confirmed-by"] == "index"
    assert properties(alpha)["source"] == f"index {url}"
    gpl = component(document, "wheels/gpl-1.0-py3-none-any.whl")
    assert gpl["licenses"] == [{"expression": "GPL-3.0-only", "acknowledgement": "concluded"}]
    assert properties(gpl)["license-from"] == "classifiers"
    assert "licenses" not in component(document, "wheels/mystery-1.0-py3-none-any.whl")
    built = properties(component(document, "wheels/built-1.0-py3-none-any.whl"))
    assert (built["built-from"], built["built-from-sha256"]) == ("built-1.0.tar.gz", "b" * 64)
    assert "confirmed-by" not in built


def test_a_model_is_a_machine_learning_model_with_its_commit_and_files(sources: Sources) -> None:
    lock = clean_lock(sources)
    document = document_of(compose(lock, sources.store).generated[SBOM_PATH])
    model = component(document, "models/tiny")
    assert (model["type"], model["version"], model["purl"]) == ("machine-learning-model", "c" * 40, ORIGIN)
    assert model["modelCard"] == {"modelParameters": {"task": "text-generation"}}
    assert model["licenses"] == [{"expression": "MIT", "acknowledgement": "declared"}]
    files = {file.path: file.sha256 for file in lock.models[0].files}
    assert {item["bom-ref"]: item["hashes"][0]["content"] for item in model["components"]} == files
    assert {properties(item)["confirmed-by"] for item in model["components"]} == {"hub"}


def test_same_lock_same_bytes_in_another_store_and_order(sources: Sources, tmp_path: Path) -> None:
    other = Sources(store=Store(tmp_path / "other"), folder=tmp_path / "elsewhere")
    one, two = defective_lock(sources), defective_lock(other)
    turned = replace(two, wheels=two.wheels[::-1])
    assert compose(one, sources.store).manifest == compose(turned, other.store).manifest
    later = replace(two, created="2026-01-03T03:04:05Z")
    serials = [
        document_of(compose(lock, other.store).generated[SBOM_PATH])["serialNumber"] for lock in (one, two, later)
    ]
    assert serials[0] == serials[1] != serials[2]


def test_the_schema_is_asked(sources: Sources) -> None:
    document = document_of(compose(clean_lock(sources), sources.store).generated[SBOM_PATH])
    document["components"][0]["type"] = "spaceship"
    assert "spaceship" in sbom_problem(json.dumps(document).encode())
    assert sbom_problem(b"\xff") != ""


def test_reading_takes_what_it_wrote(sources: Sources) -> None:
    lock = defective_lock(sources)
    composition = compose(lock, sources.store)
    read = read_sbom(composition.generated[SBOM_PATH])
    built = lock.wheels[1]
    assert read.items[built.path] == Listed(
        sha256=built.sha256,
        license="MIT",
        license_from="field",
        source="built built-1.0.tar.gz",
        built_from="built-1.0.tar.gz",
        version="1.0",
    )
    below = ("app/web/", "docs/licenses/")
    assert [
        entry.path
        for entry in composition.manifest.files
        if entry.path not in read.paths and not entry.path.startswith(below)
    ] == []
    assert {"app/web/", "docs/licenses/"} <= read.paths


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"bomFormat": "SPDX"}', b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_sbom(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_sbom(data)


def test_a_hostile_sbom_says_nothing_that_it_has_no_form_for() -> None:
    strange = [
        7,
        {"properties": 7, "components": 7},
        {"properties": [7, {"name": 1, "value": 2}, {"name": "sealift:path", "value": "wheels/x"}], "hashes": [7]},
    ]
    read = read_sbom(json.dumps({"bomFormat": "CycloneDX", "components": strange}).encode())
    assert read.items == {"wheels/x": Listed()}
    assert read.paths == {"wheels/x"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("index https://example.org/x.whl", "index"),
        ("hub", "hub"),
        ("hub main", "hub"),
        ("converted from hub main", ""),
        ("local x.whl", ""),
        ("built x.tar.gz", ""),
        ("", ""),
    ],
)
def test_who_confirmed_a_digest(source: str, expected: str) -> None:
    assert confirmed_by(source) == expected


def test_a_local_file_has_no_address(sources: Sources) -> None:
    lock = clean_lock(sources)
    wheel: LockedFile = replace(lock.wheels[0], source="local alpha.whl")
    document = document_of(compose(replace(lock, wheels=(wheel,)), sources.store).generated[SBOM_PATH])
    assert "externalReferences" not in component(document, wheel.path)
