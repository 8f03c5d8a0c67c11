"""What a rehearsal finds inside a prefix: imports and attempts of the new process, lexical weights, exit codes."""

import base64
import json
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bundler.selfpack import WHEEL_NAME, runtime_wheel
from manifests.canonical import Json
from manifests.manifest import ModelEntry, Probe
from manifests.rehearsal import AllowedAttempt, RehearsalPlan
from runtime.probe import SPARSE_TOLERANCE, Asked, AskedModel, judge_answer
from runtime.rehearsal import Rehearsed
from runtime.smoke import ImportAttempt, ImportFailure, unexcused
from tests.factories import Content, Key, make_manifest, make_release_folder
from tests.factories_closed import ClosedBundle, Host, closed_files, make_closed_bundle, make_host
from tests.factories_wheels import make_wheel

ATTEMPT = ImportAttempt(module="phone", event="socket.connect", address="192.0.2.1:80", callers=("phone.py:3 in go",))
MODEL = ModelEntry(name="m", adapter="causal-lm", path="models/m", format="safetensors", origin="dir")
KNOCK = b"import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError:\n    pass\n"


def sparse(**weights: float) -> Json:
    tokens = sorted(int(token.strip("t")) for token in weights)
    values = [weights[f"t{token}"] for token in tokens]
    return {"tokens": tokens, "weights": base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()}


@pytest.mark.parametrize(
    ("got", "wanted", "problems"),
    [
        ([sparse(t3=0.25, t7=0.5)], [sparse(t3=0.25, t7=0.5)], []),
        ([sparse(t3=0.25, t7=0.5)], [sparse(t3=0.25, t7=0.5 + SPARSE_TOLERANCE * 0.9)], []),
        ([sparse(t3=0.25)], [sparse(t3=0.25, t9=SPARSE_TOLERANCE * 0.9)], []),
        (
            [sparse(t3=0.25, t8=0.125)],
            [sparse(t3=0.25, t7=0.5)],
            ["lexical weights that differ by up to 0.5, allowed 1e-02: tokens 7, 8"],
        ),
        ([], [sparse(t3=0.25)], ["0 lexical answers, recorded 1"]),
        ([sparse(t3=0.25)], [], []),
    ],
)
def test_lexical_weights_are_compared(got: Sequence[Json], wanted: Sequence[Json], problems: list[str]) -> None:
    vector = base64.b64encode(struct.pack("<2f", 0.6, 0.8)).decode()
    expect: Json = {"vectors": [vector], "sparse": list(wanted)}
    probe = Probe(model="m", kind="embedding", inputs=("x",), expect=expect)
    answer: Mapping[str, object] = {"vectors": [vector], "sparse": list(got)}
    assert list(judge_answer(answer, probe)) == problems


def rehearsed(**changes: object) -> Rehearsed:
    fields: dict[str, object] = {
        "plan": RehearsalPlan(),
        "imports": (),
        "failed": (),
        "attempts": (),
        "asked": Asked(models=()),
        "unroutable": {"imports": 0, "models": None},
        **changes,
    }
    return Rehearsed(**fields)  # type: ignore[arg-type] # each case gives the field's own type


def test_the_gravest_finding_decides_the_exit_code() -> None:
    failure = ImportFailure(module="x", words="ImportError: no")
    wrong = Asked(models=(AskedModel(name="m", problems=("model m: an empty answer",)),))
    assert rehearsed().exit_code == 0
    assert rehearsed(attempts=(ATTEMPT,)).exit_code == 10
    assert rehearsed(attempts=(ATTEMPT,), asked=wrong).exit_code == 9
    assert rehearsed(attempts=(ATTEMPT,), asked=wrong, failed=(failure,)).exit_code == 8


def test_an_excused_attempt_is_told_and_doesn_t_count() -> None:
    plan = RehearsalPlan(allowed=(AllowedAttempt(host="192.0.2.*", module="phone", why="known"),))
    assert list(unexcused([ATTEMPT], RehearsalPlan())) == [ATTEMPT]
    assert list(unexcused([ATTEMPT], plan)) == []
    found = rehearsed(plan=plan, attempts=(ATTEMPT,))
    assert (found.exit_code, found.refused) == (0, ())
    attempts = found.to_json()["attempts"]
    assert isinstance(attempts, list)
    assert attempts[0]["allowed"] == "known"


def test_answers_are_handed_on_as_they_were_given() -> None:
    line = {
        "network": [{"event": "socket.connect", "address": "a:1", "callers": ["x.py:1 in f"]}],
        "versions": {"torch": "2"},
    }
    document = rehearsed(asked=Asked(models=(), lines=(line,))).to_json()
    assert document["versions"] == {"torch": "2"}


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Content]:
    """A bundle's files: a wheel that serving imports, and that knocks; and a model, so that it is imported."""
    wheel = make_wheel(tmp_path_factory.mktemp("links"), "pyyaml", "6.0", files={"yaml.py": KNOCK})
    return closed_files(
        extra={f"wheels/{wheel.name}": wheel.read_bytes(), "models/m/config.json": b"{}"}, models=(MODEL,)
    )


def install(folder: Path, key: Key, payload: Mapping[str, Content], plan: Json) -> tuple[Host, ClosedBundle, int, str]:
    launch: dict[str, Json] = {"rehearsal": plan, "unpacked-size": 1 << 20}
    bundle = make_closed_bundle(folder / "bundle", key, files=payload, launch=launch, models=(MODEL,))
    host = make_host(folder / "home")
    done = host.runtime(bundle.pyz, "install", bundle.tar, "--prefix", folder / "prefix", "--trust", bundle.trust)
    return host, bundle, done.returncode, done.stderr


def test_an_import_that_knocks_fails_the_smoke_test(tmp_path: Path, key: Key, payload: Mapping[str, Content]) -> None:
    _, _, code, words = install(tmp_path, key, payload, {})
    assert code == 8
    assert "error: the new virtual environment: 1 problem:\n  import yaml: tried to reach the network: " in words
    assert "network: socket.getaddrinfo 192.0.2.1:80, by socket.py:" in words
    assert " < yaml.py:3 in <module>" in words
    assert not (tmp_path / "prefix/current").exists()


def test_the_command_tells_what_is_excused(tmp_path: Path, key: Key, payload: Mapping[str, Content]) -> None:
    plan: dict[str, Json] = {
        "imports": {"pyyaml": ["yaml"], "spec": ["nowhere"]},
        "allow-network": [{"host": "192.0.2.1", "module": "yaml", "why": "known"}],
    }
    host, bundle, code, words = install(tmp_path, key, payload, plan)
    assert code == 0, words
    output = host.home / "found.json"
    done = host.runtime(bundle.pyz, "rehearse", "--prefix", tmp_path / "prefix", "--output", output)
    assert done.returncode == 8
    assert done.stdout.splitlines()[0] == "import nowhere: ModuleNotFoundError: No module named 'nowhere'"
    document = json.loads(output.read_bytes())
    assert document["imports"] == ["yaml"]
    words = "ModuleNotFoundError: No module named 'nowhere'"
    assert document["failed"] == [{"importer": "", "missing": "nowhere", "module": "nowhere", "words": words}]
    (model,) = document["models"]
    (problem,) = model["problems"]
    why = "the models could not be asked, at model 'm': ModuleNotFoundError: No module named 'numpy'"
    assert problem.startswith(why)
    (attempt,) = document["attempts"]
    assert (attempt["module"], attempt["allowed"], attempt["address"]) == ("yaml", "known", "192.0.2.1:80")
    assert document["unroutable"]["imports"] == 0


def test_what_asking_on_other_libraries_needs(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix, output = tmp_path / "prefix", tmp_path / "found.json"
    manifest = make_manifest({"models/m/config.json": b"{}"}, models=(MODEL,))
    folder = make_release_folder(prefix / "releases", manifest)
    words = ("rehearse", "--prefix", prefix, "--output", output, "--unpacked", folder)
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 2
    assert done.stderr == (
        "error: rehearse takes --unpacked and --python together, or neither\nhint: runtime rehearse --help\n"
    )
    done = host.runtime(first.pyz, *words, "--python", host.python)
    assert done.returncode == 5
    assert done.stderr == f"error: {folder}: holds no wheels/sealift-*.whl\n"
    assert not output.exists()


def test_a_python_without_the_libraries_is_the_model_s_problem(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix, output = tmp_path / "prefix", tmp_path / "found.json"
    manifest = make_manifest({"models/m/config.json": b"{}", "wheels/sealift-1-py3-none-any.whl": b""}, models=(MODEL,))
    folder = make_release_folder(prefix / "releases", manifest)
    for path, data in (("models/m/config.json", b"{}"), (f"wheels/{WHEEL_NAME}", runtime_wheel())):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    bare = make_venv(tmp_path / "bare")
    words = ("rehearse", "--prefix", prefix, "--output", output, "--unpacked", folder, "--python", bare)
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 9, done.stderr
    document = json.loads(output.read_text())
    (model,) = document["models"]
    (problem,) = model["problems"]
    assert problem.startswith("the models could not be asked, at model 'm': ModuleNotFoundError: No module named ")
    assert (document["imports"], document["attempts"], document["agreement"]) == ([], [], {})


def make_venv(folder: Path) -> Path:
    """Return the Python of a virtual environment in which nothing is installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"
