"""What changed: packages, models, files, settings; from bundles in any form, and from a manifest that was kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.review.diff import Described, diff_bundles, diff_lines, load_described, require_base
from manifests.errors import IntegrityError, UsageError
from manifests.manifest import MAX_MANIFEST_SIZE, HostNeeds, Manifest, ModelEntry, manifest_digest
from tests.factories import Content, Key, make_bundle, make_manifest, unpack_bundle
from tests.factories_media import cut, make_delta_bundle

TINY = ModelEntry(name="tiny", adapter="bge-m3", path="models/tiny", format="safetensors", origin="pkg:generic/tiny")
GONE = replace(TINY, name="gone", path="models/gone")
ADDED = replace(TINY, name="big", path="models/big", origin="pkg:huggingface/a/b@1")
OLD_FILES: dict[str, Content] = {
    "bootstrap/install.sh": b"1",
    "wheels/six-1.16.0-py3-none-any.whl": b"six",
    "wheels/Old_One-1.0-py3-none-any.whl": b"old",
    "wheels/click-8.0-py3-none-any.whl": b"click",
    "models/tiny/config.json": b"{}",
    "models/tiny/model.safetensors": b"weights",
    "models/tiny/LICENSE": b"MIT",
    "models/gone/model.safetensors": b"gone",
    "app/a.py": b"a",
    "app/b.py": b"b",
    "config/tiny.yaml": b"x: 1",
    "docs/licences/six.txt": b"MIT",
}
NEW_FILES: dict[str, Content] = {
    "bootstrap/install.sh": b"1",
    "wheels/six-1.17.0-py3-none-any.whl": b"six two",
    "wheels/click-8.0-py3-none-any.whl": b"click",
    "wheels/new-2.0-py3-none-any.whl": b"new",
    "models/tiny/config.json": b"{}",
    "models/tiny/model.safetensors": b"heavier weights",
    "models/tiny/LICENSE": b"Apache-2.0",
    "models/big/model.safetensors": b"big",
    "app/a.py": b"changed",
    "app/c.py": b"c",
    "config/tiny.yaml": b"x: 1",
    "docs/licences/six.txt": b"MIT",
    "docs/licences/new.txt": b"BSD",
}
OLD = make_manifest(OLD_FILES, models=(TINY, GONE))
NEW = make_manifest(
    NEW_FILES,
    version="2.0.0",
    sequence=1767323099,
    models=(replace(TINY, settings={"batch_size": 12}), ADDED),
    minimum=HostNeeds(memory=1),
    policy={"pickle": "refuse"},
)


def described(manifest: Manifest) -> Described:
    return Described(manifest=manifest, digest=manifest_digest(manifest.encode()))


def test_the_document() -> None:
    document = diff_bundles(described(OLD), described(NEW))
    assert document["packages"] == {
        "added": {"new": "2.0"},
        "removed": {"old-one": "1.0"},
        "changed": {"six": {"old": "1.16.0", "new": "1.17.0"}},
    }
    assert document["models"] == {
        "added": {"big": "pkg:huggingface/a/b@1"},
        "removed": {"gone": "pkg:generic/tiny"},
        "changed": {
            "tiny": {
                "fields": {"settings": {"old": {}, "new": {"batch_size": 12}}},
                "files": {
                    "added": {},
                    "removed": {},
                    "changed": {
                        "models/tiny/LICENSE": {"old": 3, "new": 10},
                        "models/tiny/model.safetensors": {"old": 7, "new": 15},
                    },
                },
            }
        },
    }
    changed: dict[str, object] = {"app/a.py": {"old": 1, "new": 7}}
    assert document["app"] == {"added": {"app/c.py": 1}, "removed": {"app/b.py": 1}, "changed": changed}
    assert document["config"] == {"added": {}, "removed": {}, "changed": {}}
    assert document["licences"] == {
        "added": {"docs/licences/new.txt": 3},
        "removed": {},
        "changed": {"models/tiny/LICENSE": {"old": 3, "new": 10}},
    }
    assert document["settings"] == {
        "sequence": {"old": 1767323045, "new": 1767323099},
        "policy": {"old": {}, "new": {"pickle": "refuse"}},
        "also": ["requires"],
    }
    carried = {"bootstrap/install.sh", "models/big/model.safetensors", "models/tiny/LICENSE", "app/a.py", "app/c.py"}
    carried |= {"models/tiny/model.safetensors", "docs/licences/new.txt"}
    carried |= {"wheels/six-1.17.0-py3-none-any.whl", "wheels/new-2.0-py3-none-any.whl"}
    size = sum(len(content) for path, content in NEW_FILES.items() if path in carried and isinstance(content, bytes))
    assert document["delta"] == {"files": len(carried), "left_out": len(NEW_FILES) - len(carried), "size": size}
    assert json.loads(json.dumps(document)) == document


def test_the_lines() -> None:
    lines = list(diff_lines(diff_bundles(described(OLD), described(NEW))))
    assert lines[0].startswith(f"old  {OLD.stem}  ")
    assert lines[1].endswith(f"manifest digest {manifest_digest(NEW.encode())}")
    assert lines[2:] == [
        "+ package new 2.0",
        "- package old-one 1.0",
        "~ package six 1.16.0 -> 1.17.0",
        "+ model big from pkg:huggingface/a/b@1",
        "- model gone from pkg:generic/tiny",
        "~ model tiny",
        "    settings: {} -> {'batch_size': 12}",
        "    ~ file models/tiny/LICENSE (3 B -> 10 B)",
        "    ~ file models/tiny/model.safetensors (7 B -> 15 B)",
        "+ app app/c.py (1 B)",
        "- app app/b.py",
        "~ app app/a.py (1 B -> 7 B)",
        "+ licences docs/licences/new.txt (3 B)",
        "~ licences models/tiny/LICENSE (3 B -> 10 B)",
        "sequence: 1767323045 -> 1767323099",
        "policy: {} -> {'pickle': 'refuse'}",
        "requires: changed",
        "a delta carries 9 files, 50 B; it leaves 4 files out",
    ]


def test_nothing_changed() -> None:
    lines = list(diff_lines(diff_bundles(described(OLD), described(OLD))))
    assert lines[2:] == ["a delta carries 1 files, 1 B; it leaves 11 files out"]


def test_many_files_are_cut_for_people_only() -> None:
    files: dict[str, Content] = {f"app/{number:03}.py": b"x" for number in range(30)}
    document = diff_bundles(described(make_manifest({})), described(make_manifest(files)))
    lines = list(diff_lines(document))
    assert "  ... and 10 more: --json has all" in lines
    app = document["app"]
    assert isinstance(app, dict)
    assert len(app["added"]) == 30


def test_every_form_is_read(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path / "b.bundle.tar", OLD_FILES, key=key, models=(TINY, GONE))
    kept = tmp_path / "kept.json"
    kept.write_bytes(OLD.encode())
    delta = make_delta_bundle(tmp_path / "d.bundle.tar", OLD_FILES, OLD, key=key, models=(TINY, GONE))
    forms = [tar, unpack_bundle(tar, tmp_path / "folder"), cut(tar, 30_000, tmp_path / "v")[0], kept, delta]
    assert {load_described(path).digest for path in forms} == {manifest_digest(OLD.encode())}


def test_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such bundle"):
        load_described(tmp_path / "gone")
    (tmp_path / "x").write_bytes(b"{}\n")
    with pytest.raises(IntegrityError, match=r"manifest\.json: _type is 'None'"):
        load_described(tmp_path / "x")
    with (tmp_path / "big").open("wb") as stream:
        stream.write(b"{")
        stream.truncate(1 << 40)
    words = f"{MAX_MANIFEST_SIZE + 1} bytes, at most {MAX_MANIFEST_SIZE} are allowed"
    with pytest.raises(IntegrityError, match=words):
        load_described(tmp_path / "big")


def test_a_base_of_another_name() -> None:
    with pytest.raises(UsageError, match="--base is a bundle of 'other', not of 'demo'"):
        require_base(NEW, described(replace(OLD, name="other")))
    require_base(NEW, described(OLD))
