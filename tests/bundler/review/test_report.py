"""The report: every class of defect found in the bundle's own bytes, decided by its policy, told in the exit code."""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest

from bundler.cli import main
from bundler.review.audit import Audit
from bundler.review.diff import load_described
from bundler.review.findings import Finding
from bundler.review.payload import open_payload
from bundler.review.report import Report, ReportOptions, make_report
from bundler.review.reportpage import render_page, write_report
from bundler.store import Store
from manifests.canonical import Json
from manifests.errors import IntegrityError, PolicyError, SourceError, TrustError
from manifests.manifest import AppEntry, parse_manifest
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.sources import Supply
from tests.factories import Key, make_bundle, make_manifest, unpack_bundle
from tests.factories_media import cut, make_delta_bundle
from tests.factories_review import ALLOW_ALL, MIT, PICKLE, SECRET, Sources, clean_lock, defective_lock, make_bundle_of

NOW: Final = datetime(2026, 2, 1, tzinfo=UTC)
LICENSES: Final[Mapping[str, Json]] = {"licenses": ["MIT", "BSD-3-Clause", "Apache-2.0"]}
STRICT: Final[Mapping[str, Json]] = {**dict.fromkeys(ALLOW_ALL, "refuse"), **LICENSES}
DEFECTS: Final = {
    "auto-map": "models/tiny/config.json",
    "built-from-source": "wheels/built-1.0-py3-none-any.whl",
    "license": "wheels/gpl-1.0-py3-none-any.whl",
    "native-code": "wheels/native-1.0-py3-none-any.whl",
    "pickle": "models/tiny/model.safetensors",
    "remote-code": "models/tiny/modeling_tiny.py",
    "secrets": "app/web/settings.ini",
    "undeclared": "docs/extra.txt",
    "unknown-license": "wheels/mystery-1.0-py3-none-any.whl",
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """An empty store."""
    return Sources(store=Store(tmp_path / "cache"), folder=tmp_path / "files")


@pytest.fixture
def clean(sources: Sources, tmp_path: Path, key: Key) -> Path:
    """A signed bundle in which nothing is to be found."""
    return make_bundle_of(clean_lock(sources), sources.store, tmp_path / "clean.bundle.tar", key)[0]


def defective(sources: Sources, key: Key, policy: Mapping[str, Json], **options: Any) -> Path:  # noqa: ANN401 # of a factory
    tar = sources.folder.parent / "defective.bundle.tar"
    return make_bundle_of(defective_lock(sources), sources.store, tar, key, policy=policy, **options)[0]


def report_of(bundle: Path, **options: Any) -> Report:  # noqa: ANN401 # fields of ReportOptions
    return make_report(bundle, ReportOptions(now=NOW, **options), Silent())


def decisions(report: Report) -> dict[tuple[str, str], str]:
    found: Any = report.document["findings"]
    return {(item["class"], item["what"]): item["decision"] for item in found}


def part(report: Report, name: str) -> Any:  # noqa: ANN401 # parsed JSON
    return report.document[name]


def test_a_clean_bundle(clean: Path, key: Key) -> None:
    report = report_of(clean, trust=key.trust)
    assert report.worst is None
    assert part(report, "findings") == []
    assert part(report, "content") == {"problems": [], "unread": [], "verified": True}
    assert part(report, "sbom") == {"present": True, "problem": ""}
    assert part(report, "signatures") == {
        "found": [{"fingerprint": key.public.fingerprint, "fits": True, "type": "ssh-ed25519"}],
        "problem": "",
        "signers": [{"fingerprint": key.public.fingerprint, "principals": key.identity}],
        "verified": True,
    }
    with open_medium(clean) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
    alpha = next(item for item in part(report, "wheels") if item["name"] == "alpha")
    entry = next(entry for entry in manifest.files if entry.path == alpha["path"])
    assert (alpha["version"], alpha["license"], alpha["confirmed_by"]) == ("1.0", "MIT", "index")
    assert (alpha["sha256"], alpha["size"], alpha["origin"]) == (entry.sha256, entry.size, "pkg:pypi/alpha@1.0")
    (model,) = part(report, "models")
    assert (model["name"], model["version"], model["license"]) == ("tiny", "c" * 40, "MIT")
    assert (model["confirmed_by"], model["confirmed_files"]) == ("hub", 3)
    assert part(report, "vulnerabilities")["checked"] is False


@pytest.mark.parametrize("kind", DEFECTS)
def test_every_class_of_defect_is_found_and_decided(sources: Sources, key: Key, kind: str) -> None:
    more = {"docs/extra.txt": b"nobody knows me"}
    what = DEFECTS[kind]
    allowed = report_of(defective(sources, key, {**ALLOW_ALL, **LICENSES}, more=more))
    assert set(decisions(allowed)) == set(DEFECTS.items())
    assert set(decisions(allowed).values()) == {"allowed"}
    assert allowed.worst is None
    policy: dict[str, Json] = {**ALLOW_ALL, **LICENSES, kind: "refuse"}
    refused = report_of(defective(sources, key, policy, more=more))
    assert {item for item, verdict in decisions(refused).items() if verdict == "refused"} == {(kind, what)}
    assert isinstance(refused.worst, PolicyError)
    assert refused.worst.message.endswith(f"its own policy refuses 1 findings, first {kind}: {what}")
    waiver: dict[str, Json] = {"class": kind, "what": what, "who": "kim", "why": "known", "until": "2026-01-31"}
    waived = report_of(defective(sources, key, {**policy, "waiver": [waiver]}, more=more))
    assert decisions(waived)[kind, what] == "waived"
    assert waived.worst is None
    assert part(waived, "waivers") == [{**waiver, "expired": True}]  # by the report's time, not by the manifest's


def test_the_facts_come_from_the_bytes_and_not_from_what_the_builder_wrote_down(
    sources: Sources, tmp_path: Path
) -> None:
    lock = clean_lock(sources, ALLOW_ALL)
    model = sources.model({"config.json": b"{}\n", "model.safetensors": PICKLE})
    lying = replace(lock, models=(replace(model, facts={}),))
    tar, _ = make_bundle_of(lying, sources.store, tmp_path / "lying.bundle.tar", policy={})
    assert decisions(report_of(tar)) == {("pickle", "models/tiny/model.safetensors"): "refused"}


def test_not_signed_and_signed_by_somebody_else(sources: Sources, tmp_path: Path, key: Key, second_key: Key) -> None:
    tar, _ = make_bundle_of(clean_lock(sources), sources.store, tmp_path / "unsigned.bundle.tar")
    unsigned = report_of(tar)
    assert (part(unsigned, "signatures")["found"], part(unsigned, "signatures")["verified"]) == ([], None)
    assert ">Not signed</span>" in render_page(unsigned.document)
    assert isinstance(report_of(tar, trust=key.trust).worst, TrustError)
    tar, _ = make_bundle_of(clean_lock(sources), sources.store, tmp_path / "other.bundle.tar", second_key)
    other = report_of(tar, trust=key.trust)
    assert isinstance(other.worst, TrustError)
    assert part(other, "signatures")["verified"] is False
    assert part(other, "signatures")["found"][0]["fingerprint"] == second_key.public.fingerprint
    assert ">Signature not trusted</span>" in render_page(other.document)


def test_damaged_content_is_told_and_not_looked_into(clean: Path) -> None:
    data = bytearray(clean.read_bytes())
    place = data.rindex(MIT)
    data[place] ^= 1
    clean.write_bytes(data)
    report = report_of(clean)
    assert isinstance(report.worst, IntegrityError)
    (problem,) = part(report, "content")["problems"]
    assert "docs/licenses/wheels/alpha-1.0/LICENSE: expected sha256" in problem
    assert part(report, "content")["verified"] is False
    assert part(report, "findings") == []
    assert all(item["license"] == "" for item in part(report, "wheels"))
    assert "no file was looked into" in render_page(report.document)


def test_an_unpacked_folder_gives_the_same_report(clean: Path, tmp_path: Path, key: Key) -> None:
    folder = unpack_bundle(clean, tmp_path / "unpacked")
    assert report_of(folder, trust=key.trust).document == report_of(clean, trust=key.trust).document


def test_a_missing_model_file_is_damage(clean: Path, tmp_path: Path) -> None:
    folder = unpack_bundle(clean, tmp_path / "unpacked")
    (folder / "models/tiny/model.safetensors").unlink()
    report = report_of(folder)
    assert isinstance(report.worst, IntegrityError)
    assert "models/tiny/model.safetensors" in part(report, "content")["problems"][0]


def test_a_foreign_bundle_without_sbom_and_with_a_broken_wheel(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, {"wheels/x-1-py3-none-any.whl": b"no zip", "docs/a": b""}, key=key)
    report = report_of(tar)
    assert part(report, "sbom") == {"present": False, "problem": ""}
    assert part(report, "content")["problems"] == [
        "wheels/x-1-py3-none-any.whl: no readable wheel: File is not a zip file"
    ]
    assert decisions(report) == {("undeclared", "docs/sbom.cdx.json"): "refused"}
    assert isinstance(report.worst, IntegrityError)


def test_a_policy_that_can_not_be_read_is_a_problem(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, {"docs/a": b""}, key=key, policy={"pickle": "perhaps"})
    report = report_of(tar)
    assert part(report, "content")["problems"][0].startswith("manifest.json: policy.pickle: 'perhaps'")
    assert "perhaps" in render_page(report.document)


def test_an_sbom_that_gives_another_digest_is_caught(sources: Sources, tmp_path: Path, key: Key) -> None:
    tar, _ = make_bundle_of(clean_lock(sources), sources.store, tmp_path / "a.bundle.tar", key)
    folder = unpack_bundle(tar, tmp_path / "unpacked")
    files: dict[str, bytes | int] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("manifest.json")
    }
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    wheel = next(entry for entry in manifest.files if "alpha" in entry.path and entry.kind == "wheel")
    sbom = files["docs/sbom.cdx.json"]
    assert isinstance(sbom, bytes)
    files["docs/sbom.cdx.json"] = sbom.replace(wheel.sha256.encode(), b"0" * 64)
    forged = make_bundle(tmp_path / "forged.bundle.tar", files, key=key, models=manifest.models, app=manifest.app)
    found = decisions(report_of(forged))
    assert found == {("undeclared", wheel.path): "refused"}


def test_of_a_delta_only_what_is_there_is_looked_into(tmp_path: Path, key: Key) -> None:
    base = make_manifest({"docs/sbom.cdx.json": b"{}", "app/web/old.txt": SECRET})
    files = {"docs/sbom.cdx.json": b"{}", "app/web/old.txt": SECRET, "app/web/new.txt": b"new\n" + SECRET}
    app = AppEntry(name="web", path="app/web", origin="")
    delta = make_delta_bundle(tmp_path / "delta.bundle.tar", files, base, key=key, app=(app,))
    report = report_of(delta)
    assert part(report, "content") == {
        "problems": [],
        "unread": ["app/web/old.txt", "docs/sbom.cdx.json"],
        "verified": True,
    }
    assert decisions(report) == {("secrets", "app/web/new.txt"): "refused"}
    assert part(report, "sbom")["problem"] == "not on this medium: see the report of the base"
    assert '2 <span lang="en">files are not on this medium' in render_page(report.document)


def test_volumes_are_read_from_several_folders(clean: Path, tmp_path: Path, key: Key) -> None:
    first, second, *_ = cut(clean, 1_000_000, tmp_path / "one", tmp_path / "two")
    report = report_of(first, trust=key.trust, supply=Supply(folders=(second.parent,)))
    assert report.document == report_of(clean, trust=key.trust).document


def test_what_changed_since_an_earlier_delivery(sources: Sources, clean: Path, key: Key) -> None:
    report = report_of(defective(sources, key, ALLOW_ALL), base=load_described(clean))
    assert "+ package gpl 1.0" in part(report, "changes")["lines"]
    page = html.unescape(render_page(report.document))
    assert "+ package gpl 1.0" in page
    assert "+ app app/web/settings.ini" in page


class Knowing:
    """An auditor that knows one vulnerability, and nothing of the packages that it is told to skip."""

    def __init__(self, *skipped: str) -> None:
        self.asked: Mapping[str, str] = {}
        self.skipped = skipped

    def audit(self, packages: Mapping[str, str]) -> Audit:
        self.asked = packages
        known = Finding(kind="vulnerabilities", what="PYSEC-1 alpha==1.0", detail="It burns.")
        unanswered = tuple(f"{name}: not found" for name in self.skipped)
        return Audit(findings=() if "alpha" in self.skipped else (known,), unanswered=unanswered)


class Unreachable:
    """An auditor whose service can't be reached."""

    def audit(self, packages: Mapping[str, str]) -> Audit:
        raise SourceError(f"no way to ask for {len(packages)} packages")


def test_vulnerabilities_are_asked_for_only_on_demand(sources: Sources, tmp_path: Path, key: Key) -> None:
    policy: dict[str, Json] = {"vulnerabilities": "refuse"}
    tar, _ = make_bundle_of(clean_lock(sources, policy), sources.store, tmp_path / "a.bundle.tar", key)
    knowing = Knowing("uv")
    report = report_of(tar, auditor=knowing)
    assert part(report, "vulnerabilities") == {
        "checked": True,
        "found": 1,
        "unanswered": ["uv: not found"],
        "when": "2026-02-01T00:00:00Z",
    }
    assert "\n<pre>uv: not found\n" in render_page(report.document)
    assert decisions(report) == {("vulnerabilities", "PYSEC-1 alpha==1.0"): "refused"}
    assert knowing.asked == {"uv": "1.0", "alpha": "1.0"}
    # What pip-audit skips it has not checked, though it exits with 0 and says that it found nothing.
    silent = report_of(tar, auditor=Knowing("uv", "alpha"))
    assert part(silent, "vulnerabilities")["checked"] is False
    assert part(silent, "vulnerabilities")["why"] == "no package could be checked; uv: not found"
    unreachable = report_of(tar, auditor=Unreachable())
    assert part(unreachable, "vulnerabilities")["why"] == "no way to ask for 2 packages"
    assert unreachable.worst is None
    assert "Vulnerabilities not checked" in render_page(unreachable.document)


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_the_page_escapes_everything_and_asks_for_nothing(sources: Sources, tmp_path: Path, key: Key) -> None:
    evil = "<script>alert(1)</script><img src=http://evil.example/x>"
    waiver: Json = {"class": "license", "what": evil, "who": evil, "why": evil, "until": "2026-12-31"}
    wheel = sources.wheel("alpha", f"License-Expression: {evil}", source=f"index https://evil.example/{evil}")
    lock = replace(clean_lock(sources), wheels=(wheel,), policy={"waiver": [waiver], "licenses": [evil]})
    lock = replace(lock, models=(replace(lock.models[0], license="mit"),))
    tar, _ = make_bundle_of(
        replace(lock, policy=ALLOW_ALL), sources.store, tmp_path / "a.bundle.tar", key, policy=lock.policy
    )
    page = render_page(report_of(tar, base=load_described(tar)).document)
    assert html.escape(evil) in page
    seen = Tags()
    seen.feed(page)
    assert not seen.tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a", "image", "use"}
    assert not seen.attributes & {"src", "href", "action", "background", "poster", "data", "srcset", "xlink:href"}
    assert [name for name in seen.attributes if name.startswith("on")] == []
    assert re.findall(r"(?i)url\(|@import", page) == []
    assert "default-src 'none'" in page


def test_both_languages_are_in_one_page(clean: Path, tmp_path: Path) -> None:
    report = report_of(clean)
    english, korean = render_page(report.document, "en"), render_page(report.document, "ko")
    for page in (english, korean):
        assert page.count('<span lang="en">') == page.count('<span lang="ko">') > 50
        assert page.count("data-en=") == page.count("data-ko=") == page.count("<td")
    assert 'id="lang-en" checked>' in english
    assert 'id="lang-ko" checked>' in korean
    page_path, data_path = write_report(report, tmp_path / "new" / "folder", "ko")
    assert page_path.read_text(encoding="utf-8") == korean
    assert json.loads(data_path.read_bytes()) == report.document


def test_the_digest_for_the_telephone_and_the_stock_commands_are_on_the_page(clean: Path) -> None:
    with open_medium(clean) as medium:
        digest = str(part(report_of(clean), "bundle")["digest"])
        assert len(medium.manifest_bytes) > 0
    page = render_page(report_of(clean).document)
    groups = re.findall(r"<span>([0-9a-f]{8})</span>", page)
    assert "".join(groups) == digest
    commands = html.unescape(page)
    recipe = (Path(__file__).parents[3] / "docs/verify-without-sealift.md").read_text(encoding="utf-8")
    for line in commands[
        commands.index("mkdir signed") : commands.index("</pre>", commands.index("mkdir signed"))
    ].splitlines():
        known = line in recipe or line in {"mkdir signed unpacked", "sha256sum signed/manifest.json"}
        assert known, line


def test_streams_of_a_payload(clean: Path) -> None:
    with open_medium(clean) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        entry = next(entry for entry in manifest.files if entry.path.endswith("models/tiny/LICENSE"))
        with open_payload(medium, entry) as stream:
            assert stream.read() == MIT
            assert stream.read() == b""
            assert (stream.seek(-5, 2), stream.read(99), stream.seek(10), stream.read(4)) == (
                len(MIT) - 5,
                MIT[-5:],
                10,
                MIT[10:14],
            )
            with pytest.raises(OSError, match="before the start"):
                stream.seek(-1000, 2)
        assert stream.closed


@pytest.mark.parametrize(("policy", "code"), [(ALLOW_ALL, 0), (STRICT, 10)])
def test_the_command_line(
    sources: Sources, key: Key, capsys: pytest.CaptureFixture[str], policy: Mapping[str, Json], code: int
) -> None:
    tar = defective(sources, key, policy)
    words = ["report", str(tar), "--output", str(sources.folder / "out"), "--trust", str(key.allowed_signers), "--json"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == code
    printed = json.loads(capsys.readouterr().out)
    assert Path(printed["page"]).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    found = json.loads(Path(printed["data"]).read_bytes())["findings"]
    assert {item["class"] for item in found} >= {"pickle", "remote-code", "secrets"}
    assert bool(printed["problem"]) is bool(code)
