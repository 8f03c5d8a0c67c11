"""Rehearsing: what isn't one whole tar, what fails is named and never signed, and the evidence beside the bundle."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.quickstart import ClosedSideError
from bundler.rehearsal.evidence import Rehearsal, evidence_document, not_rehearsed, rehearsal_problem
from bundler.rehearsal.rehearse import rehearse_bundle
from bundler.rehearsal.sandbox import find_isolation
from bundler.sealing.keys import allowed_signers_line
from manifests.canonical import Json, parse_canonical
from manifests.errors import PolicyError
from manifests.manifest import Target
from tests.factories import Key, is_root, make_key, make_manifest
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import HOST_TARGET, NOBODY, closed_files, make_closed_bundle, program
from tests.factories_wheels import make_wheel

PHONE = b"""
import urllib.request

def call_home():
    try:
        urllib.request.urlopen("http://telemetry.example/ping", timeout=1)
    except OSError:
        pass

call_home()
"""
NATIVE = b"""
import subprocess, sys
# What native code does: a socket that no audit hook of the importing process sees.
subprocess.run([sys.executable, "-I", "-S", "-c", "import socket; socket.create_connection(('192.0.2.7', 80), 1)"],
               capture_output=True)
"""
LACKING = b"import somewhere.deep\n"
ALLOWED = '[rehearsal]\nallow-network = [{ host = "telemetry.example", module = "phone", why = "counts nothing" }]\n'
REFUSED = "import phone (wheels/phone-1.0-py3-none-any.whl): socket.getaddrinfo telemetry.example:80, by socket.py:"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A person whose packages are six and click; version 1.0.0 is built, a full bundle."""
    folder = tmp_path_factory.mktemp("rehearse")
    links = folder / "links"
    for name, content in (("phone", PHONE), ("native", NATIVE), ("lacking", LACKING)):
        make_wheel(links, name, "1.0", files={f"{name}/__init__.py": content})
    made = Builder(folder=folder / "home", links=(wheel_links(), links))
    made.folder.mkdir()
    write_spec(made.folder / "demo.toml", "six==1.17.0")
    made.json("build", "demo.toml", "--output", "base", "--unsigned", "--no-rehearsal")
    write_spec(made.folder / "demo.toml", "six==1.17.0", "click==8.3.1", version="2.0.0")
    made.json("lock", "demo.toml")
    return made


@pytest.fixture(scope="module")
def signer(builder: Builder) -> Key:
    """The builder's key."""
    return make_key(builder.folder / "release", seed=b"V" * 32)


def base_of(builder: Builder) -> Path:
    (found,) = (builder.folder / "base").glob("*.bundle.tar")
    return found


def load(path: Path | str) -> dict[str, Any]:
    document = parse_canonical(Path(path).read_bytes(), what="evidence", max_size=1 << 20)
    assert isinstance(document, dict)
    return document


@pytest.mark.slow
def test_a_delta_in_volumes_is_rehearsed(builder: Builder, signer: Key, tmp_path: Path) -> None:
    words = ("--output", tmp_path, "--volume-size", "8MiB", "--base", base_of(builder), "--key", signer.path)
    done = builder.run("build", "demo.toml", *words)
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stderr.splitlines() if line.startswith("... ")]
    at = steps.index("... pack")
    assert steps[at + 1].startswith("... rehearse in a ")
    assert steps[at + 2].startswith("... put the ")
    assert steps[at + 2].endswith(" files of the base into its store")
    assert steps[at + 3 :] == []
    (first,) = tmp_path.glob("*.delta.bundle.tar.001")
    (evidence,) = tmp_path.glob("*.delta.rehearsal.json")
    assert load(evidence)["rehearsed"] is True
    assert not list(tmp_path.glob(".rehearsal*"))
    trust = ("--trust", signer.allowed_signers)
    code, told = builder.refused("rehearse", first, *trust)
    assert code == 2
    assert f"error: {first}: is a delta to version 1.0.0, manifest digest " in told
    assert told.endswith(f"hint: bundler rehearse {first} --base BUNDLE --trust FILE\n")
    document = builder.json("rehearse", first, *trust, "--base", base_of(builder))
    digest = load(evidence)["digest"]
    left_out = load(evidence)["not_rehearsed"]
    assert document == {"bundle": str(first), "digest": digest, "not_rehearsed": left_out, "rehearsed": True}
    code, told = builder.refused("rehearse", first, *trust, "--base", first)
    assert (code, "the delta is to version 1.0.0, manifest digest " in told) == (5, True)


@pytest.mark.slow
def test_volumes_on_two_disks_are_rehearsed(builder: Builder, signer: Key, tmp_path: Path) -> None:
    words = ("--output", tmp_path / "a", "--volume-size", "8MiB", "--key", signer.path)
    document = builder.json("build", "demo.toml", *words)
    volumes = [Path(path) for path in document["volumes"]]
    (tmp_path / "b").mkdir()
    for path in volumes[1:]:
        path.rename(tmp_path / "b" / path.name)
    done = builder.json("rehearse", volumes[0], "--trust", signer.allowed_signers, "--volumes", tmp_path / "b")
    assert done["rehearsed"]


@pytest.mark.slow
def test_a_later_rehearsal_leaves_evidence_too(builder: Builder, signer: Key, tmp_path: Path) -> None:
    """Somebody else rehearses what was built without; report and inspect tell it, and whose word it is."""
    built = builder.json("build", "demo.toml", "--output", tmp_path, "--key", signer.path, "--no-rehearsal")
    bundle, trust = Path(built["bundle"]), ("--trust", signer.allowed_signers)
    lines = builder.run("inspect", bundle).stdout.splitlines()
    assert "NOT rehearsed as far as is known: there is no evidence beside the bundle" in lines
    before = {path.name for path in tmp_path.iterdir()}
    assert "evidence" not in builder.json("rehearse", bundle, *trust)
    assert {path.name for path in tmp_path.iterdir()} == before, "nothing is written that nobody asked for"
    tester = make_key(tmp_path / "tester", "test@example.com", seed=b"T" * 32)
    document = builder.json("rehearse", bundle, *trust, "--key", tester.path)
    evidence = bundle.with_name(bundle.name.replace(".bundle.tar", ".rehearsal.json"))
    assert document["evidence"] == [str(evidence), f"{evidence}.sig"]
    found = load(evidence)
    assert (found["rehearsed"], found["digest"], found["imports"]) == (True, built["digest"], ["click", "six"])
    assert (document["digest"], document["not_rehearsed"]) == (built["digest"], found["not_rehearsed"])
    told = builder.json("inspect", bundle)["rehearsal"]
    assert (told["rehearsed"], told["path"], told["verified"]) == (True, evidence.name, None)
    assert told["signatures"] == [{"fingerprint": tester.public.fingerprint, "fits": True, "type": "ssh-ed25519"}]
    both = tmp_path / "both"
    both.write_text("".join(allowed_signers_line(one.public, one.identity) for one in (signer, tester)))
    builder.json("report", bundle, "--output", tmp_path / "review", "--trust", both)
    rehearsal = json.loads((tmp_path / "review/report.json").read_text())["rehearsal"]
    assert (rehearsal["verified"], rehearsal["signers"]) == (True, ["test@example.com"])
    builder.json("report", bundle, "--output", tmp_path / "review", *trust)
    rehearsal = json.loads((tmp_path / "review/report.json").read_text())["rehearsal"]
    assert (rehearsal["verified"], rehearsal["rehearsed"]) == (False, True)
    words = f"it has 0 of 1 trusted signatures; key {tester.public.fingerprint} is not among the allowed signers"
    assert rehearsal["signature_problem"] == words
    code, told = builder.refused("rehearse", bundle, *trust, "--evidence", evidence)
    assert (code, told) == (
        2,
        (
            f"error: {evidence}: is signed evidence, and this rehearsal's would not be signed\n"
            "hint: sign it: --key FILE; or write it elsewhere: --evidence FILE\n"
        ),
    )
    other = tmp_path / "elsewhere.json"
    done = builder.run("rehearse", bundle, *trust, "--evidence", other)
    assert done.stdout == f"{bundle}: installed, verified and asked without network\n{other}  not signed\n"
    assert not other.with_name("elsewhere.json.sig").exists()
    line = next(
        line for line in builder.run("inspect", bundle, "--evidence", other).stdout.splitlines() if "says" in line
    )
    assert line == f"rehearsed {load(other)['time']}, says elsewhere.json, not signed"


def test_evidence_that_has_no_place(builder: Builder, signer: Key, tmp_path: Path) -> None:
    words = ("rehearse", base_of(builder), "--trust", signer.allowed_signers, "--evidence", tmp_path / "no" / "e.json")
    code, told = builder.refused(*words)
    assert code == 2
    assert told == (
        f"error: {tmp_path}/no: no such folder for the evidence\nhint: make it first, or name another file\n"
    )
    code, told = builder.refused("inspect", base_of(builder), "--evidence", tmp_path / "e.json")
    assert (code, told) == (
        2,
        f"error: {tmp_path}/e.json: no such evidence\nhint: bundler rehearse BUNDLE --trust FILE --evidence FILE\n",
    )


def planted(builder: Builder, folder: Path, requirement: str, more: str = "") -> Builder:
    """Return the same builder elsewhere, whose spec asks for a wheel that misbehaves."""
    write_spec(folder / "demo.toml", "six==1.17.0", requirement, more=more)
    return replace(builder, folder=folder, variables={"XDG_CACHE_HOME": str(builder.cache)})


def test_a_wheel_that_phones_home_is_named_and_not_signed(builder: Builder, signer: Key, tmp_path: Path) -> None:
    bad = planted(builder, tmp_path, "phone")
    code, told = bad.refused("build", "demo.toml", "--output", "out", "--key", signer.path)
    assert code == 10
    assert "error: the rehearsal tried to reach the network: 1 problem:\n  " + REFUSED in told
    assert " < phone/__init__.py:6 in call_home" in told
    hint = 'hint: if it does no harm: [rehearsal] allow-network = [{ host = "telemetry.example", why = "..." }]\n'
    assert told.endswith(hint)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_what_the_spec_excuses_is_signed_and_told(builder: Builder, signer: Key, tmp_path: Path) -> None:
    excused = planted(builder, tmp_path, "phone", ALLOWED)
    document = excused.json("build", "demo.toml", "--output", "out", "--key", signer.path)
    evidence, signature = (tmp_path / path for path in document["evidence"])
    found = load(evidence)
    (attempt,) = found["attempts"]
    assert (attempt["address"], attempt["allowed"]) == ("telemetry.example:80", "counts nothing")
    assert attempt["module"] == "phone"
    assert (found["rehearsed"], found["imports"], found["digest"]) == (True, ["phone", "six"], document["digest"])
    assert [step["step"] for step in found["steps"]] == ["verify bundle", "install", "verify release", "import and ask"]
    if find_isolation().is_namespace:
        assert set(found["unroutable"].values()) == {0}
    text = evidence.read_text()
    for secret in (str(tmp_path), os.uname().nodename, "/releases/"):
        assert secret not in text
    verify = [program("ssh-keygen"), "-Y", "verify", "-f", str(signer.path.with_name("any")), "-I", signer.identity]
    signer.path.with_name("any").write_text(f'{signer.identity} namespaces="sealift-*" {signer.public.line}\n')
    verify += ["-n", "sealift-rehearsal-v1", "-s", str(signature)]
    assert subprocess.run(verify, input=evidence.read_bytes(), capture_output=True, check=False).returncode == 0
    again = excused.json("build", "demo.toml", "--output", "again", "--key", signer.path, "--no-rehearsal")
    assert (tmp_path / again["bundle"]).read_bytes() == (tmp_path / document["bundle"]).read_bytes()
    assert "evidence" not in again


@pytest.mark.slow
@pytest.mark.skipif(not find_isolation().is_namespace, reason="needs a network namespace")
def test_native_code_that_reaches_out_is_seen_by_the_kernel(builder: Builder, tmp_path: Path) -> None:
    code, told = planted(builder, tmp_path, "native").refused("build", "demo.toml", "--output", "out", "--unsigned")
    assert code == 10
    assert told == (
        "error: the rehearsal tried to reach the network, by native code that Python doesn't see: "
        "1 packets during import and ask\n"
        'hint: leave out the wheel that does, or: [rehearsal] allow-network = [{ host = "*", why = "..." }]\n'
    )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_module_that_is_missing_is_named_with_who_wants_it(builder: Builder, tmp_path: Path) -> None:
    bad = planted(builder, tmp_path, "lacking")
    code, told = bad.refused("build", "demo.toml", "--output", "out", "--unsigned")
    assert code == 8
    assert told == (
        "error: the rehearsal's imports: 1 problem:\n"
        "  import lacking (wheels/lacking-1.0-py3-none-any.whl): ModuleNotFoundError: No module named 'somewhere', "
        "wanted by lacking/__init__.py\n"
        "hint: add what has the module 'somewhere' to packages.requirements, then: bundler lock SPEC; or "
        '[rehearsal] skip-imports = ["lacking"] leaves it out\n'
    )
    assert list((tmp_path / "out").iterdir()) == []
    write_spec(tmp_path / "demo.toml", "lacking", more='[rehearsal]\nskip-imports = ["lacking"]\n')
    bad.json("lock", "demo.toml")
    done = bad.run("build", "demo.toml", "--output", "out", "--unsigned")
    assert done.returncode == 0, done.stderr
    (evidence,) = (tmp_path / "out").glob("*.rehearsal.json")
    assert f"out/{evidence.name}  rehearsed, not signed\n" in done.stdout
    assert load(evidence)["imports"] == []
    assert not evidence.with_name(f"{evidence.name}.sig").exists()


def test_a_target_of_another_kind_is_verified_and_told_as_not_rehearsed(tmp_path: Path, key: Key) -> None:
    target = Target(platform="aarch64-apple-darwin", python=HOST_TARGET.python, accelerator="cpu")
    bundle = make_closed_bundle(tmp_path, key, files=closed_files("six", target=target), target=target)
    told: list[str] = []
    done = rehearse_bundle(bundle.tar, key.allowed_signers.read_text(), told.append)
    reason = f"the bundle is for aarch64-apple-darwin, this host is {HOST_TARGET.platform}"
    assert (done.rehearsed, done.reason, list(done.steps)) == (False, reason, ["verify bundle"])
    assert told[-1] == f"NOT rehearsed: {reason}: installation, imports and network"
    document = evidence_document(bundle.manifest, "0" * 64, done)
    assert document["rehearsed"] is False
    assert document["not_rehearsed"] == [f"{reason}: installation, imports and network"]


def test_a_damaged_bundle_for_another_kind_of_host_is_refused_all_the_same(tmp_path: Path, key: Key) -> None:
    target = Target(platform="aarch64-apple-darwin", python=HOST_TARGET.python, accelerator="cpu")
    bundle = make_closed_bundle(tmp_path, key, files=closed_files("six", target=target), target=target)
    with bundle.tar.open("r+b") as stream:
        stream.seek(bundle.tar.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    with pytest.raises(ClosedSideError) as caught:
        rehearse_bundle(bundle.tar, key.allowed_signers.read_text(), lambda _: None)
    assert caught.value.exit_code == 5


def reachable(folder: Path) -> None:
    for each in (folder, *folder.parents):
        if each.stat().st_uid == os.getuid() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o011)


@pytest.mark.slow
@pytest.mark.skipif(
    not is_root() or shutil.which(f"python{HOST_TARGET.python}", path=os.defpath) is None,
    reason="becomes another user, who needs a Python",
)
def test_root_rehearses_as_an_ordinary_user_where_that_one_can_reach_it(tmp_path: Path, key: Key) -> None:
    who = b"import os\nassert os.getuid() == %d and not os.environ.get('SECRET')\n" % NOBODY
    wheel = make_wheel(tmp_path / "links", "who", "1.0", files={"who.py": who})
    files = closed_files(extra={f"wheels/{wheel.name}": wheel.read_bytes()})
    launch: dict[str, Json] = {"unpacked-size": 1 << 20, "rehearsal": {"imports": {"who": ["who"]}}}
    bundle = make_closed_bundle(tmp_path / "bundle", key, files=files, launch=launch)
    reachable(tmp_path / "bundle")
    done = rehearse_bundle(bundle.tar, key.allowed_signers.read_text(), lambda _: None)
    assert (done.user, done.found["imports"], done.found["failed"]) == ("ordinary", ["who"], [])
    (tmp_path / "bundle").chmod(0o700)
    with pytest.raises(Exception, match="AssertionError") as caught:
        rehearse_bundle(bundle.tar, key.allowed_signers.read_text(), lambda _: None)
    assert "import who (wheels/who-1.0-py3-none-any.whl): AssertionError" in str(caught.value)


def test_what_a_rehearsal_does_not_vouch_for() -> None:
    manifest = make_manifest({})
    assert list(not_rehearsed(manifest, Rehearsal(is_closed=True, user="ordinary"))) == []
    assert list(not_rehearsed(manifest, Rehearsal(user="root"))) == [
        "native code's way to the network: this host has no namespaces, only Python's guard watched",
        "an ordinary user: it was root, whom permissions don't stop",
    ]


def test_an_excuse_for_every_host_covers_what_only_the_kernel_saw() -> None:
    plan: dict[str, Json] = {"allow-network": [{"host": "*", "module": "", "why": "a check of the clock"}]}
    seen = Rehearsal(is_closed=True, kernel={"install": 0, "import and ask": 2})
    assert rehearsal_problem(seen, make_manifest({}, launch={"rehearsal": plan})) is None
    named: dict[str, Json] = {"allow-network": [{"host": "*", "module": "x", "why": "y"}]}
    problem = rehearsal_problem(seen, make_manifest({}, launch={"rehearsal": named}))
    assert isinstance(problem, PolicyError)
    assert problem.message.endswith("by native code that Python doesn't see: 2 packets during import and ask")
