"""The Hub: huggingface_hub's real client against a hub on the loopback."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from bundler.snapshots.hub import Hub, HubFile, HubSnapshot
from bundler.snapshots.patience import Limits
from bundler.store import Store
from manifests.errors import SourceError
from tests.bundler.snapshots.test_transfer import PatientClock
from tests.factories_hub import Fault, LoopbackHub, blob_id_of, loopback_hub

ROOT = Path(__file__).parents[3]
REPO = "org/model"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/한국어.txt": b"words"}
TOKEN = "hf_loopbacksecret"  # noqa: S105 - a loopback's


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        hub.add(REPO, FILES, refs=("v1",))
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def refused(store: Store, repo: str = REPO, revision: str = "main") -> SourceError:
    with pytest.raises(SourceError) as caught:
        Hub(limits=Limits(attempts=3), clock=PatientClock()).snapshot(repo, revision, store)
    assert "hf_" not in caught.value.render()
    return caught.value


def test_snapshot_says_what_a_commit_holds(hub: LoopbackHub, store: Store) -> None:
    hub.tags[REPO] = ["pytorch", "license:mit"]
    hub.page = 2  # the tree comes in pages
    snapshot = Hub().snapshot(REPO, "v1", store)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert snapshot == HubSnapshot(
        repo=REPO,
        commit="a" * 40,
        files=(
            HubFile(path="config.json", size=2, sha256="", blob_id=blob_id_of(b"{}")),
            HubFile(path="model.safetensors", size=7, sha256=sha256, blob_id=blob_id_of(sha256.encode())),
            HubFile(path="sub/한국어.txt", size=5, sha256="", blob_id=blob_id_of(b"words")),
        ),
        license="mit",
    )
    assert snapshot.purl == f"pkg:huggingface/org/model@{'a' * 40}"
    assert len([item for item in hub.asked if "/tree/" in item.path]) == 2


def test_a_commit_is_asked_for_once_and_a_branch_each_time(hub: LoopbackHub, store: Store) -> None:
    first = Hub().snapshot(REPO, "main", store)
    hub.add(REPO, {"config.json": b"[]"}, commit="b" * 40)
    count = len(hub.asked)
    assert Hub().snapshot(REPO, first.commit, store) == first
    assert len(hub.asked) == count
    assert Hub().snapshot(REPO, "main", store).commit == "b" * 40


def test_files_come_into_the_store(hub: LoopbackHub, store: Store) -> None:
    api = Hub()
    snapshot = api.snapshot(REPO, "main", store)
    digests = api.fetch(snapshot, snapshot.files, store)
    assert {path: store.path(digest.sha256).read_bytes() for path, digest in digests.items()} == FILES
    hub.asked.clear()
    assert api.fetch(snapshot, snapshot.files, store) == digests
    assert hub.asked == []


def test_token_of_the_environment_opens_private_and_gated(
    hub: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens[REPO] = TOKEN
    host = hub.endpoint.removeprefix("http://")
    error = refused(store)
    assert error.message == f"{REPO}: is not there, or private, at {host}"
    assert error.hint == "check the name, and for a private one `hf auth login`, or export HF_TOKEN=..."
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    error = refused(store)
    assert error.message == f"{REPO}: is not there, or private and not for your token, at {host}"
    assert error.hint == "check the name, and that your token may read it"
    monkeypatch.setenv("HF_TOKEN", "hf_invalid")
    error = refused(store)
    assert error.message == f"{REPO}: {host} doesn't accept your token"
    assert error.hint == "`hf auth login`, or export HF_TOKEN=..., or unset HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(Hub().snapshot(REPO, "main", store).files) == 3


def test_token_file_is_used(hub: LoopbackHub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens[REPO] = TOKEN
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    api = Hub()
    snapshot = api.snapshot(REPO, "main", store)
    api.fetch(snapshot, snapshot.files, store)
    by_server = {(item.server, item.authorization) for item in hub.asked}
    assert by_server == {("hub", f"Bearer {TOKEN}"), ("content", "")}


@pytest.mark.parametrize("token", ["", "hf_another"])
def test_gated_files_say_where_to_accept(
    hub: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.tokens[REPO] = TOKEN
    hub.gated.add(REPO)
    api = Hub()
    snapshot = api.snapshot(REPO, "main", store)  # as on the real one, the listing isn't gated
    with pytest.raises(SourceError) as caught:
        api.fetch(snapshot, snapshot.files, store)
    host = hub.endpoint.removeprefix("http://")
    status = "403 Forbidden" if token else "401 Unauthorized"
    assert caught.value.message == f"{REPO}/config.json: {host} refuses: status {status}, GatedRepo"
    login = "`hf auth login`, or export HF_TOKEN=..."
    assert caught.value.hint == f"open {hub.endpoint}/{REPO} in a browser, accept its conditions, then {login}"
    assert "hf_another" not in caught.value.render()


def test_missing_revision_and_repository(hub: LoopbackHub, store: Store) -> None:
    host = hub.endpoint.removeprefix("http://")
    error = refused(store, revision="v9")
    assert error.message == f"{REPO}: has no revision 'v9' at {host}"
    assert error.hint == f"look at its branches and tags, or write a commit: hf:{REPO}@<40 hex digits>"
    assert refused(store, repo="org/none").message == f"org/none: is not there, or private, at {host}"
    assert "can't be a repository's name" in refused(store, repo="a//b").message


def test_gated_listing(hub: LoopbackHub, store: Store) -> None:
    hub.faults["api"] = [Fault(at="hub", status=403, headers={"X-Error-Code": "GatedRepo"})]
    error = refused(store)
    assert error.message.startswith(f"{REPO}: gated at 127.0.0.1:")
    assert error.hint is not None
    assert error.hint.startswith(f"open {hub.endpoint}/{REPO} in a browser")


def test_hiccups_of_the_api_are_waited_for(hub: LoopbackHub, store: Store) -> None:
    fault = Fault(at="hub", status=429, headers={"Retry-After": "5"})
    hub.faults["api"] = [fault, Fault(at="hub", status=503)]
    clock, said = PatientClock(), list[str]()
    assert Hub(clock=clock, report=said.append).snapshot(REPO, "main", store).commit == "a" * 40
    assert clock.waits == [5.0, 2.0]
    assert said[0].endswith("status 429; trying again in 5 s")
    hub.faults["api"] = [Fault(at="hub", status=500, times=99)]
    assert refused(store).message.endswith("status 500; 3 attempts")


def test_what_is_not_a_hub(hub: LoopbackHub, store: Store) -> None:
    host = hub.endpoint.removeprefix("http://")
    for body in (b"<html>", b"[]", b'{"id": "x", "sha": "main"}', b'{"id": "x"}'):
        hub.faults["api"] = [Fault(at="hub", status=200, body=body)]
        error = refused(store)
        assert error.message.startswith(f"{host} doesn't answer as a Hub does: {REPO}")
        assert error.hint == "check HF_ENDPOINT"


def test_digests_that_are_none_are_refused(hub: LoopbackHub, store: Store) -> None:
    tree = b'[{"type": "file", "path": "x", "size": 1, "oid": "../../etc"}]'
    info = ('{"id": "x", "sha": "' + "a" * 40 + '"}').encode()
    hub.faults["api"] = [Fault(at="hub", status=200, body=info), Fault(at="hub", status=200, body=tree)]
    assert refused(store).message.endswith(f"{REPO}: 'x' has no usable size and digest")


def test_unreachable_hub(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:hf_password@127.0.0.1:1")
    error = refused(store)
    assert error.message == f"{REPO}@main: can't be fetched from 127.0.0.1:1: it can't be reached; 3 attempts"
    assert error.hint == "check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT"


def test_endpoint_that_is_no_address(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    error = refused(store)
    assert error.message == "HF_ENDPOINT: 'mirror.example' is not an http or https address"
    assert error.hint == "write it with its scheme: https://..."


def test_offline_by_choice(hub: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from pathlib import Path; from bundler.snapshots.hub import Hub; from bundler.store import Store\n"
        "from manifests.errors import SourceError\n"
        "try: Hub().snapshot('org/model', 'main', Store(Path(sys.argv[1])))\n"
        "except SourceError as error: print(error.render())\n"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-c", code, str(store.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ("error: org/model@main: HF_HUB_OFFLINE forbids to ask the Hub\nhint: unset HF_HUB_OFFLINE\n")
    assert hub.asked == []


def test_a_bundler_without_huggingface_hub_starts() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import bundler.cli; from bundler.snapshots.hub import Hub; from manifests.errors import SourceError\n"
        "try: Hub()\n"
        "except SourceError as error: print(error.render())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "error: models from the Hub need the package huggingface_hub, which isn't installed\n"
        "hint: pip install huggingface_hub\n"
    )
