"""The policy where a bundle is locked and built: each class refused, allowed or waived; waivers that ran out."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.compose import compose
from bundler.lock import parse_lock
from bundler.review.policy import check_lock_policy, check_model
from bundler.specparse import parse_spec
from bundler.store import Store
from manifests.canonical import Json
from manifests.errors import IntegrityError, PolicyError, SpecError
from manifests.manifest import parse_manifest
from manifests.policy import CLASSES, parse_policy
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_review import ALLOW_ALL, CREATED, Sources, clean_lock, defective_lock
from tests.factories_wheels import make_wheel

WAIVER: Final[Mapping[str, str]] = {
    "class": "pickle",
    "what": "models/tiny/*",
    "who": "kim@example.com",
    "why": "checked by hand",
    "until": "2026-01-02",
}
FOUND: Final = {
    "auto-map": "models/tiny/config.json",
    "built-from-source": "wheels/built-1.0-py3-none-any.whl",
    "native-code": "wheels/native-1.0-py3-none-any.whl",
    "pickle": "models/tiny/model.safetensors",
    "remote-code": "models/tiny/modeling_tiny.py",
    "secrets": "app/web/settings.ini",
    "unknown-license": "wheels/mystery-1.0-py3-none-any.whl",
}
WHERE: Final = "demo 1.0.0: the policy refuses: 1 problem:\n  "


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """An empty store."""
    return Sources(store=Store(tmp_path / "cache"), folder=tmp_path / "files")


@pytest.mark.parametrize("kind", FOUND)
def test_each_class_is_refused_by_name_allowed_or_waived(sources: Sources, kind: str) -> None:
    check_lock_policy(defective_lock(sources), sources.store)
    policy: dict[str, Json] = {**ALLOW_ALL, kind: "refuse"}
    with pytest.raises(PolicyError) as caught:
        compose(defective_lock(sources, policy), sources.store)
    assert caught.value.exit_code == 10
    assert caught.value.message.startswith(f"{WHERE}{kind}: {FOUND[kind]}: ")
    assert caught.value.hint is not None
    assert f"class = '{kind}'" in caught.value.hint
    waived = {**policy, "waiver": [{**WAIVER, "class": kind, "what": FOUND[kind]}]}
    manifest = compose(defective_lock(sources, waived), sources.store).manifest
    assert parse_manifest(manifest.encode()).policy["waiver"] == waived["waiver"]


def test_a_gpl_wheel_against_a_list_of_licences(sources: Sources) -> None:
    policy: dict[str, Json] = {**ALLOW_ALL, "license": "refuse", "licenses": ["MIT", "Apache-2.0", "BSD-3-Clause"]}
    with pytest.raises(PolicyError) as caught:
        check_lock_policy(defective_lock(sources, policy), sources.store)
    found = "license: wheels/gpl-1.0-py3-none-any.whl: GPL-3.0-only is not in the allow-list"
    assert caught.value.message == f"{WHERE}{found}"
    check_lock_policy(clean_lock(sources, {"licenses": ["MIT", "Apache-2.0"]}), sources.store)
    with pytest.raises(PolicyError, match=r"license: wheels/sealift-[0-9.]+-py3-none-any\.whl: Apache-2\.0 is not in"):
        check_lock_policy(clean_lock(sources, {"licenses": ["MIT"]}), sources.store)


def test_every_refused_finding_is_named_at_once(sources: Sources) -> None:
    with pytest.raises(PolicyError) as caught:
        check_lock_policy(defective_lock(sources, {}), sources.store)
    kinds = [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]]
    assert kinds == ["pickle", "remote-code", "secrets"]


def test_a_waiver_that_ran_out_when_the_lock_was_made_is_refused(sources: Sources) -> None:
    expired = {**WAIVER, "until": "2026-01-01"}
    with pytest.raises(PolicyError) as caught:
        check_lock_policy(clean_lock(sources, {"waiver": [expired]}), sources.store)
    assert caught.value.message == (
        f"waivers that had run out when the bundle was locked, {CREATED}: 1 problem:\n"
        "  pickle models/tiny/*, by kim@example.com, until 2026-01-01"
    )
    check_lock_policy(clean_lock(sources, {"waiver": [dict(WAIVER)]}), sources.store)


def test_secrets_are_looked_for_once(sources: Sources) -> None:
    lock = defective_lock(sources, {**ALLOW_ALL, "secrets": "refuse"})
    with pytest.raises(PolicyError, match=r"secrets: app/web/settings\.ini: private key, line 2"):
        check_lock_policy(lock, sources.store)
    for file in lock.apps[0].files:
        sources.store.drop(file.sha256)
    with pytest.raises(PolicyError, match=r"secrets: app/web/settings\.ini: private key, line 2"):
        check_lock_policy(lock, sources.store)


def test_a_model_is_refused_before_anything_else_is_done_with_it() -> None:
    with pytest.raises(PolicyError) as caught:
        check_model("tiny", ["a.pkl", "model.safetensors"], [], {}, "spec.toml: model 'tiny'")
    found = "a.pkl, model.safetensors (by its content)"
    assert caught.value.message == f"spec.toml: model 'tiny': policy.pickle refuses {found}"
    waiver: dict[str, Json] = {"waiver": [dict(WAIVER)]}
    check_model("tiny", ["a.pkl", "model.safetensors"], [], waiver, "spec.toml: model 'tiny'")
    with pytest.raises(PolicyError, match=r"policy\.remote-code refuses b\.py"):
        check_model("tiny", [], ["b.py"], waiver, "spec.toml: model 'tiny'")
    with pytest.raises(PolicyError, match=r"policy\.pickle refuses a\.pkl"):
        check_model("other", ["a.pkl"], [], waiver, "spec.toml: model 'other'")


def test_the_spec_has_every_class_and_its_waivers() -> None:
    bundle = {"name": "demo", "version": "1"}
    classes: dict[str, object] = dict.fromkeys(CLASSES, "refuse")
    spec = parse_spec({"bundle": bundle, "policy": {**classes, "waiver": [dict(WAIVER)]}}, Path("spec.toml"))
    assert spec.policy == {**classes, "waiver": [dict(WAIVER)]}
    plain = parse_spec({"bundle": bundle}, Path("spec.toml"))
    assert plain.policy == {"pickle": "refuse", "remote-code": "refuse"}
    assert plain.digest != spec.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"until": "2026-02-30"}, "until: '2026-02-30' is not a day such as '2027-01-31'"),
        ({"until": "soon"}, "until: 'soon' is not a day such as '2027-01-31'"),
        ({"until": "20260102"}, "until: '20260102' is not a day such as '2027-01-31'"),
        ({"who": " "}, "who: is empty: a waiver says what, who, why and until when"),
        ({"why": ""}, "why: is empty: a waiver says what, who, why and until when"),
        ({"what": ""}, "what: is empty: a waiver says what, who, why and until when"),
        ({"class": "pickles"}, f"class: 'pickles' is not one of {', '.join(CLASSES)}"),
        ({"zz": "x"}, "zz: unknown key"),
    ],
)
def test_a_waiver_must_be_whole(change: dict[str, str], message: str) -> None:
    data = {"bundle": {"name": "demo", "version": "1"}, "policy": {"waiver": [{**WAIVER, **change}]}}
    with pytest.raises(SpecError) as caught:
        parse_spec(data, Path("spec.toml"))
    assert caught.value.message == f"spec.toml: policy.waiver[0].{message}"


def test_a_hostile_policy_is_an_integrity_error() -> None:
    for document in ({"pickle": 7}, {"pickle": "maybe"}, {"waiver": [7]}, {"waiver": 7}, {"licenses": "MIT"}):
        with pytest.raises(IntegrityError, match=r"^manifest\.json: policy"):
            parse_policy(document)


def test_a_lock_keeps_the_waivers(sources: Sources) -> None:
    lock = clean_lock(sources, {"waiver": [dict(WAIVER)]})
    assert parse_lock(json.loads(lock.encode()), "demo.lock").policy == lock.policy
    assert replace(lock, policy={}) != lock


def test_locking_and_building_refuse_by_the_command_line(tmp_path: Path) -> None:
    links = tmp_path / "links"
    make_wheel(links, "gplthing", "1.0", headers=["License: GPLv3"])
    builder = Builder(folder=tmp_path / "home", links=(links, wheel_links()))
    builder.folder.mkdir()
    policy = '[policy]\nlicenses = ["MIT", "Apache-2.0", "BSD-3-Clause"]\n'
    spec = write_spec(builder.folder / "demo.toml", "gplthing==1.0", more=policy)
    code, text = builder.refused("lock", spec)
    assert code == 10
    assert "license: wheels/gplthing-1.0-py3-none-any.whl: GPL-3.0-only is not in the allow-list" in text
    assert not spec.with_suffix(".lock").exists()
    waiver = '[[policy.waiver]]\nclass = "license"\nwhat = "wheels/gplthing-*"\nwho = "k"\nwhy = "w"\nuntil = "{}"\n'
    write_spec(spec, "gplthing==1.0", more=policy + waiver.format("2026-01-01"))
    code, text = builder.refused("lock", spec)
    assert (code, "waivers that had run out" in text) == (10, True)
    write_spec(spec, "gplthing==1.0", more=policy + waiver.format("2026-12-31"))
    assert builder.json("lock", spec)["wheels"] == 1
    assert '"who": "k"' in spec.with_suffix(".lock").read_text()
