"""Recorded answers in a lock: filled in, kept while they hold, dropped with a note; and what a rehearsal imports."""

import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.lock import Lock, LockedFile, LockedModel, load_lock, write_lock
from bundler.rehearsal.answers import DEFAULT_INPUTS, fill_answers, keep_answers, with_default_probes
from bundler.rehearsal.importplan import plan_rehearsal, top_modules
from bundler.rehearsal.record import record_answers
from bundler.selfpack import self_digests
from bundler.spec import RehearsalSpec, Spec
from bundler.store import Store
from manifests.canonical import Json
from manifests.errors import IntegrityError, SourceError
from manifests.manifest import ModelEntry, Probe, Target
from manifests.pieces import Silent
from manifests.rehearsal import AllowedAttempt, RecordedAgreement, RehearsalPlan
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import HOST_TARGET
from tests.factories_wheels import make_wheel

EXPECT: Json = {"texts": ["Paris."], "versions": {"torch": "2.13.0+cpu"}}
PROBE = Probe(model="tiny", kind="chat", inputs=("Where?",))


def locked(path: str, digest: str = "a") -> LockedFile:
    return LockedFile(path=path, size=1, sha256=digest * 64)


def make_model(name: str, *, digest: str = "a", settings: Mapping[str, Json] | None = None) -> LockedModel:
    entry = ModelEntry(
        name=name,
        adapter="causal-lm",
        path=f"models/{name}",
        format="safetensors",
        origin="dir",
        settings=settings or {},
    )
    return LockedModel(entry=entry, files=(locked(f"models/{name}/config.json", digest),))


def make_lock(
    *models: LockedModel, probes: Sequence[Probe] = (PROBE,), torch: str = "2.13.0+cpu", target: Target = HOST_TARGET
) -> Lock:
    """Return a lock of the given models, with torch and transformers."""
    return Lock(
        spec_digest="0" * 64,
        sealift=dict(self_digests()),
        created="2026-01-02T03:04:05Z",
        sequence=1,
        name="demo",
        version="1.0.0",
        target=target,
        resolver="none",
        wheels=(
            locked(f"wheels/torch-{torch}-py3-none-any.whl"),
            locked("wheels/transformers-5.24.0-py3-none-any.whl"),
        ),
        installer=locked("bootstrap/uv-1-py3-none-any.whl"),
        models=models or (make_model("tiny"),),
        probes=tuple(probes),
    )


RECORDED = make_lock(probes=[replace(PROBE, expect=EXPECT)])


def keep(new: Lock, previous: Lock | None = RECORDED) -> tuple[list[Json], list[str]]:
    told: list[str] = []
    return [probe.expect for probe in keep_answers(new, previous, told.append).probes], told


def test_answers_are_kept_where_nothing_changed() -> None:
    assert keep(make_lock()) == ([EXPECT], [])
    assert keep(make_lock(), None) == ([None], [])
    assert keep(make_lock(), make_lock()) == ([None], [])


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (make_lock(make_model("tiny", digest="b")), "its files changed"),
        (make_lock(make_model("tiny", settings={"int8": True})), "its adapter or settings changed"),
        (make_lock(torch="2.14.0+cpu"), "torch 2.13.0+cpu became 2.14.0+cpu"),
        (make_lock(probes=[replace(PROBE, inputs=("Who?",))]), "it is asked something else"),
    ],
)
def test_answers_that_no_longer_hold_are_dropped_with_a_note(new: Lock, why: str) -> None:
    note = f"model tiny: its recorded answers are dropped: {why}; bundler lock --record"
    assert keep(new) == ([None], [note])


def test_answers_of_a_model_that_is_gone_are_dropped() -> None:
    note = "model tiny: its recorded answers are dropped: it is gone; bundler lock --record"
    assert keep(make_lock(make_model("other"), probes=())) == ([], [note])


def test_the_answers_to_a_probe_that_recording_added_are_kept() -> None:
    asked = with_default_probes(make_lock(make_model("tiny"), make_model("other")))
    assert [(probe.model, probe.kind, probe.inputs) for probe in asked] == [
        ("tiny", "chat", ("Where?",)),
        ("other", "chat", DEFAULT_INPUTS),
    ]
    both = (make_model("tiny"), make_model("other"))
    previous = make_lock(*both, probes=[replace(probe, expect=EXPECT) for probe in asked])
    kept = keep_answers(make_lock(*both), previous, lambda _: None)
    assert kept.probes == previous.probes
    changed = keep_answers(make_lock(both[0], make_model("other", digest="b")), previous, lambda _: None)
    assert changed.probes == previous.probes[:1]


def test_how_far_8_bit_vectors_are_is_kept_and_dropped_with_the_answers(tmp_path: Path) -> None:
    found = RecordedAgreement(texts=1, cosine_min="0.998700", cosine_mean="0.998700")
    measured = replace(RECORDED, rehearsal=RehearsalPlan(imports={"six": ("six",)}, agreement={"tiny": found}))
    write_lock(tmp_path / "demo.lock", measured)
    assert load_lock(tmp_path / "demo.lock") == measured
    locked_again = replace(make_lock(), rehearsal=RehearsalPlan(imports={"six": ("six",)}))
    assert keep_answers(locked_again, measured, lambda _: None) == measured
    more = make_lock(probes=[PROBE, replace(PROBE, inputs=("Who?",))])
    kept = keep_answers(more, measured, lambda _: None)
    assert [probe.expect for probe in kept.probes] == [EXPECT, None], "this answer still holds"
    assert kept.rehearsal.agreement == {}, "it was measured on other texts"
    for changed in (make_lock(make_model("tiny", digest="b")), make_lock(torch="2.14.0+cpu")):
        assert keep_answers(changed, measured, lambda _: None).rehearsal.agreement == {}


def test_answers_are_filled_in_by_model_and_order(tmp_path: Path) -> None:
    lock = make_lock(probes=[PROBE, replace(PROBE, inputs=("Who?",))])
    versions: Mapping[str, Json] = {"torch": "2.13.0+cpu"}
    filled = fill_answers(lock, {"tiny": ([{"texts": ["one"]}, {"texts": ["two"]}], versions)})
    assert [probe.expect for probe in filled.probes] == [
        {"texts": ["one"], "versions": versions},
        {"texts": ["two"], "versions": versions},
    ]
    assert [probe.expect for probe in fill_answers(lock, {}).probes] == [None, None]
    write_lock(tmp_path / "demo.lock", filled)
    assert load_lock(tmp_path / "demo.lock") == filled


def record(lock: Lock, tmp_path: Path) -> tuple[Lock, list[str]]:
    told: list[str] = []
    spec = Spec(path=tmp_path / "demo.toml", name="demo", version="1.0.0", target=lock.target)
    store = Store(root=tmp_path / "store")
    return record_answers(spec, lock, store, progress=lambda _: nullcontext(Silent()), report=told.append), told


def test_a_target_that_this_host_cannot_run_stays_unrecorded(tmp_path: Path) -> None:
    lock = make_lock(target=Target(platform="aarch64-apple-darwin", python="3.11", accelerator="cpu"))
    same, told = record(lock, tmp_path)
    assert same is lock
    assert told == [f"unrecorded: the bundle is for aarch64-apple-darwin, this host is {HOST_TARGET.platform}"]


def test_a_bundle_without_models_has_nothing_to_record(tmp_path: Path) -> None:
    builder = Builder(folder=tmp_path, links=(wheel_links(),))
    write_spec(tmp_path / "demo.toml", "six==1.17.0")
    document = builder.json("lock", "demo.toml", "--record")
    assert (document["probes"], document["recorded"]) == (0, 0)
    before = (tmp_path / "demo.lock").read_bytes()
    done = builder.run("lock", "demo.toml", "--record")
    assert done.stderr == "... nothing to record: the bundle has no models\n", "the current lock is taken as it is"
    assert done.stdout.endswith("\nanswers of 0 of 0 probes are recorded\n")
    assert (tmp_path / "demo.lock").read_bytes() == before
    assert load_lock(tmp_path / "demo.lock").rehearsal.imports == {"six": ("six",)}


def stored(store: Store, wheel: Path) -> LockedFile:
    digest = store.add_file(wheel)
    return LockedFile(path=f"wheels/{wheel.name}", size=digest.size, sha256=digest.sha256)


def test_the_top_level_modules_of_a_wheel(tmp_path: Path) -> None:
    names = (
        *("one.py", "two/__init__.py", "two/sub/__init__.py", "space/part/__init__.py", "space/other.py"),
        *("fast.cpython-311-x86_64-linux-gnu.so", "abi.abi3.so", "_private.py", "tests/__init__.py", "not-a-name.py"),
        *("data/file.txt", "x-1.0.data/purelib/three.py", "x-1.0.data/scripts/run.py", "x.libs/libx.so"),
    )
    wheel = make_wheel(tmp_path, "x", "1.0", files=dict.fromkeys(names, b""))
    store = Store(root=tmp_path / "store")
    assert top_modules(stored(store, wheel), store) == ("abi", "fast", "one", "space.part", "three", "two")


def test_what_a_spec_adds_and_leaves_out(tmp_path: Path) -> None:
    store = Store(root=tmp_path / "store")
    wheels = [stored(store, make_wheel(tmp_path, name, "1.0")) for name in ("One-Part", "two", "three")]
    allowed = AllowedAttempt(host="*.example", module="", why="known")
    settings = RehearsalSpec(imports=("two.sub",), skip_imports=("one_part", "Three"), allowed=(allowed,))
    spec = Spec(path=tmp_path / "x.toml", name="x", version="1", target=HOST_TARGET, rehearsal=settings)
    plan = plan_rehearsal(spec, ["two>=1", "one-part", "three[extra]; python_version > '3'", "nowhere"], wheels, store)
    assert plan.imports == {"two": ("two",), "spec": ("two.sub",)}
    assert (plan.modules, plan.allowed) == (("two", "two.sub"), (allowed,))
    plain = replace(spec, rehearsal=RehearsalSpec())
    assert plan_rehearsal(plain, ["one-part", "two"], wheels, store).modules == ("one_part", "two")
    assert spec.digest != plain.digest


def test_a_wheel_that_is_no_zip_or_not_there(tmp_path: Path) -> None:
    store, bad = Store(root=tmp_path / "store"), tmp_path / "bad-1-py3-none-any.whl"
    with pytest.raises(SourceError):
        top_modules(locked("wheels/gone-1-py3-none-any.whl"), store)
    bad.write_bytes(b"no zip")
    assert not zipfile.is_zipfile(bad)
    with pytest.raises(IntegrityError, match=r"wheels/bad-1-py3-none-any\.whl: not a readable zip"):
        top_modules(stored(store, bad), store)
