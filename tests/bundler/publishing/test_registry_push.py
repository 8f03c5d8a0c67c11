"""Pushing to a real registry and pulling from it, by the command line and by the library; skopeo reads the result."""

import hashlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bundler.publishing.pulls import pull_bundle
from bundler.publishing.registries import Pushed, push_bundle
from bundler.sealing.keys import load_signer
from bundler.sealing.sign import sign_bundle
from manifests.artifact import EMPTY_DIGEST, EMPTY_TYPE, OCI_MANIFEST, TITLE
from manifests.digests import CHUNK_SIZE, sha256_hex
from manifests.errors import IntegrityError, SourceError, UsageError
from manifests.files import locked
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.reference import Remote
from tests.factories import SMALL_FILES, Key, make_bundle, make_manifest, sign_slot, unpack_bundle
from tests.factories_cli import Builder
from tests.factories_closed import copy_of, flip_bit, program
from tests.factories_media import cut, delta_bytes, delta_text, needed
from tests.factories_proxy import Asked, Decide, Fault, FaultProxy
from tests.factories_registry import REPOSITORY, RegistryServer, registry_server, remote_to

BIG = "models/big/weights.bin"
BIG_SIZE = 2 * CHUNK_SIZE + 1_000_000
WEIGHTS = hashlib.shake_128(b"push").digest(BIG_SIZE)
FILES: dict[str, bytes] = {**SMALL_FILES, "models/copy/config.json": b"{}\n"}
KOREAN = next(path for path in FILES if not path.isascii())
NOBODY: Mapping[str, str] = {"HOME": "/nonexistent"}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """A small bundle; never write to it."""
    return make_bundle(tmp_path_factory.mktemp("tar"), FILES, key=key, executable=["bootstrap/install.sh"])


@pytest.fixture(scope="module")
def big_tar(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """A bundle with a file of three chunks; never write to it."""
    return make_bundle(tmp_path_factory.mktemp("big"), {**SMALL_FILES, BIG: WEIGHTS}, key=key)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    """An empty registry."""
    with registry_server(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Whoever types ``bundler``."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Builder(folder=folder)


def push(path: Path, remote: Remote) -> Pushed:
    with open_medium(path) as medium:
        return push_bundle(medium, remote, Silent(), NOBODY)


def pull(remote: Remote, folder: Path) -> Path:
    with open_medium(remote) as medium:
        return pull_bundle(medium, folder, Silent()).bundle


def test_the_oci_manifest(server: RegistryServer, tar: Path) -> None:
    done = push(tar, remote_to(server.host))
    data = server.manifest("1.0.0")
    assert done.digest == f"sha256:{sha256_hex(data)}"
    document = json.loads(data)
    assert document["config"] == {"mediaType": EMPTY_TYPE, "digest": EMPTY_DIGEST, "size": 2}
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_MANIFEST)
    layers = {layer["annotations"][TITLE]: layer for layer in document["layers"]}
    assert list(layers)[:3] == ["manifest.json", "manifest.json.sig", "bootstrap/install.sh"]
    assert set(layers) == {"manifest.json", "manifest.json.sig", *FILES}
    for path, content in FILES.items():
        assert (layers[path]["digest"], layers[path]["size"]) == (f"sha256:{sha256_hex(content)}", len(content))
    assert server.blob(sha256_hex(FILES[KOREAN])).read_bytes() == FILES[KOREAN]


def test_what_is_there_is_not_sent_again(server: RegistryServer, tar: Path, second_key: Key, tmp_path: Path) -> None:
    first = push(tar, remote_to(server.host))
    contents = len(set(FILES.values()))
    assert (first.sent, first.found) == (contents + 3, 0)  # the manifest, the signatures and the config
    with FaultProxy(server.host) as proxy:
        again = push(tar, remote_to(proxy.host, "again"))
        assert again == Pushed(digest=first.digest, sent=0, sent_size=0, found=contents + 3)
        assert [asked.path for asked in proxy.of("PUT")] == [f"/v2/{REPOSITORY}/manifests/again"]
        assert proxy.of("POST") == []
        signed = copy_of(tar, tmp_path)
        sign_bundle(signed, load_signer(second_key.path))
        cosigned = push(signed, remote_to(proxy.host))
        assert (cosigned.sent, cosigned.sent_size, cosigned.found) == (1, 16_384, contents + 2)
        assert cosigned.digest != first.digest
    assert pull(remote_to(server.host), tmp_path / "pulled").read_bytes() == signed.read_bytes()
    assert pull(remote_to(server.host, "again"), tmp_path / "before").read_bytes() == tar.read_bytes()


@pytest.mark.parametrize("form", ["volumes", "folder"])
def test_other_forms_are_pushed_as_well(server: RegistryServer, tar: Path, tmp_path: Path, form: str) -> None:
    path = cut(tar, 20_000, tmp_path / "cut")[0] if form == "volumes" else unpack_bundle(tar, tmp_path / "unpacked")
    push(path, remote_to(server.host))
    assert pull(remote_to(server.host), tmp_path / "pulled").read_bytes() == tar.read_bytes()


def test_a_delta(server: RegistryServer, key: Key, tmp_path: Path) -> None:
    base, new = make_manifest(SMALL_FILES), make_manifest(FILES, version="2.0.0")
    carried = needed(new, base)
    tar = tmp_path / "delta.tar"
    text = delta_text(base, carried)
    tar.write_bytes(delta_bytes(new, FILES, sign_slot(new.encode(), key), text, carried))
    done = push(tar, remote_to(server.host))
    pulled = pull(remote_to(server.host), tmp_path / "pulled")
    assert pulled.name == f"{new.stem}.from-{sha256_hex(base.encode())[:12]}.delta.bundle.tar"
    assert pulled.read_bytes() == tar.read_bytes()
    assert done.sent == len(carried) + 4  # and manifest, signatures, delta.json, the config


def test_skopeo_carries_it_on(server: RegistryServer, tar: Path, tmp_path: Path) -> None:
    digest = push(tar, remote_to(server.host)).digest
    there = f"docker://{server.host}/{REPOSITORY}:1.0.0"
    run(program("skopeo"), "copy", "--src-tls-verify=false", there, f"oci:{tmp_path / 'layout'}:1.0.0")
    with registry_server(tmp_path / "other") as other:
        to = f"docker://{other.host}/mirror/demo:1.0.0"
        run(program("skopeo"), "copy", "--src-tls-verify=false", "--dest-tls-verify=false", there, to)
        raw = run(program("skopeo"), "inspect", "--raw", "--tls-verify=false", to)
        assert f"sha256:{sha256_hex(raw)}" == digest
        pulled = pull(remote_to(other.host, repository="mirror/demo"), tmp_path / "pulled")
        assert pulled.read_bytes() == tar.read_bytes()
    back = f"docker://{server.host}/back:1.0.0"
    run(program("skopeo"), "copy", "--dest-tls-verify=false", f"oci:{tmp_path / 'layout'}:1.0.0", back)
    assert pull(remote_to(server.host, repository="back"), tmp_path / "back").read_bytes() == tar.read_bytes()


def run(*words: str) -> bytes:
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is refused.


def test_a_damaged_bundle_never_becomes_a_tag(server: RegistryServer, tar: Path, tmp_path: Path) -> None:
    path = "models/tiny/model.safetensors"
    bad = copy_of(tar, tmp_path)
    flip_bit(bad, bad.read_bytes().index(FILES[path]) + 100)
    with FaultProxy(server.host) as proxy, pytest.raises(IntegrityError) as caught:
        push(bad, remote_to(proxy.host))
    assert f"  {path}: expected sha256 {sha256_hex(FILES[path])}, got " in caught.value.message
    assert not server.blob(sha256_hex(FILES[path])).exists()
    assert [asked for asked in proxy.of("PUT") if "/manifests/" in asked.path] == []


def test_a_damaged_chunk_is_named(server: RegistryServer, big_tar: Path, tmp_path: Path) -> None:
    bad = copy_of(big_tar, tmp_path)
    flip_bit(bad, bad.read_bytes().index(WEIGHTS[:64]) + CHUNK_SIZE + 5)
    with pytest.raises(IntegrityError) as caught:
        push(bad, remote_to(server.host))
    second = sha256_hex(WEIGHTS[CHUNK_SIZE : 2 * CHUNK_SIZE])
    assert f"  {BIG} chunk 1: expected sha256 {second}, got " in caught.value.message


def test_a_digest_is_no_place_to_push_to(tar: Path) -> None:
    remote = remote_to("127.0.0.1:1", f"sha256:{'a' * 64}")
    with pytest.raises(
        UsageError, match=r"^oci://127\.0\.0\.1:1/team/demo@sha256:a+: a push needs a tag, not a digest$"
    ):
        push(tar, remote)


def test_a_proxy_that_takes_no_large_requests(server: RegistryServer, tar: Path) -> None:
    def decide(asked: Asked, _: int) -> Fault | None:
        return Fault(status=413) if asked.method == "PUT" and asked.size == 2304 else None

    with FaultProxy(server.host, decide) as proxy, pytest.raises(SourceError) as caught:
        push(tar, remote_to(proxy.host))
    path = "models/tiny/model.safetensors"
    where = f"oci://{proxy.host}/{REPOSITORY}:1.0.0: {path}"
    assert caught.value.message == f"{where}: the registry doesn't take it: it answers (413)"
    assert caught.value.hint is not None
    assert "64 MiB have to pass" in caught.value.hint


# Chunks that break off.


FIRST, SECOND = f"0-{CHUNK_SIZE - 1}", f"{CHUNK_SIZE}-{2 * CHUNK_SIZE - 1}"
THIRD = f"{2 * CHUNK_SIZE}-{BIG_SIZE - 1}"


def chunk(wanted: str, **fault: object) -> Decide:
    """Do harm to the first request that sends one chunk."""
    left = [wanted]

    def decide(asked: Asked, _: int) -> Fault | None:
        if asked.method == "PATCH" and asked.content_range in left:
            left.remove(wanted)
            return Fault(**fault)  # type: ignore[arg-type] # each test gives the field's own type
        return None

    return decide


@pytest.mark.parametrize(
    ("fault", "ranges", "said"),
    [
        ({}, [FIRST, SECOND, THIRD], []),
        # Nothing of it arrived: the same chunk once more.
        ({"hang_up": "before"}, [FIRST, SECOND, SECOND, THIRD], ["the connection was cut"]),
        ({"status": 503}, [FIRST, SECOND, SECOND, THIRD], ["it answers (503)"]),
        # The registry tells how far it is, and it goes on there.
        ({"status": 416}, [FIRST, SECOND, SECOND, THIRD], ["it answers (416)"]),
        # Docker's registry doesn't go on behind a part of a chunk.
        ({"pass_on": 1_000_000}, [FIRST, SECOND, FIRST, SECOND, THIRD], ["the connection was cut, begun again"]),
    ],
    ids=["none", "cut before", "busy", "asked where", "cut within"],
)
def test_chunks(
    server: RegistryServer,
    big_tar: Path,
    tmp_path: Path,
    *,
    fault: dict[str, object],
    ranges: list[str],
    said: list[str],
) -> None:
    heard: list[str] = []
    with FaultProxy(server.host, chunk(SECOND, **fault) if fault else lambda _asked, _number: None) as proxy:
        push(big_tar, remote_to(proxy.host, report=heard.append))
        assert [asked.content_range for asked in proxy.of("PATCH")] == ranges
        assert {asked.size for asked in proxy.of("PATCH")} == {CHUNK_SIZE, BIG_SIZE - 2 * CHUNK_SIZE}
    assert heard == [f"{BIG}: {words}; trying again in 0 s" for words in said]
    assert pull(remote_to(server.host), tmp_path / "pulled").read_bytes() == big_tar.read_bytes()


def test_the_answer_to_the_end_of_an_upload_is_lost(server: RegistryServer, tar: Path, tmp_path: Path) -> None:
    def decide(asked: Asked, number: int) -> Fault | None:
        return Fault(hang_up="after") if asked.method == "PUT" and asked.size == 2304 and not number else None

    with FaultProxy(server.host, decide) as proxy:
        push(tar, remote_to(proxy.host))
    assert pull(remote_to(server.host), tmp_path / "pulled").read_bytes() == tar.read_bytes()


def test_the_registry_dies_and_comes_back_while_something_is_pushed(
    server: RegistryServer, big_tar: Path, tmp_path: Path
) -> None:
    def decide(asked: Asked, number: int) -> Fault | None:
        if asked.content_range == SECOND and number == 1:
            server.stop()
        elif asked.method == "GET" and server.process is None:
            server.start()
        return None

    with FaultProxy(server.host, decide) as proxy:
        push(big_tar, remote_to(proxy.host))
        assert [asked.content_range for asked in proxy.of("PATCH")] == [FIRST, SECOND, SECOND, THIRD]
    assert pull(remote_to(server.host), tmp_path / "pulled").read_bytes() == big_tar.read_bytes()


# Pulling.


def test_a_damaged_blob_is_named_and_the_rest_stays(server: RegistryServer, big_tar: Path, tmp_path: Path) -> None:
    push(big_tar, remote_to(server.host))
    folder = tmp_path / "pulled"

    def decide(asked: Asked, _: int) -> Fault | None:
        return Fault(flip=7) if asked.range == f"bytes={SECOND}" else None

    with FaultProxy(server.host, decide) as proxy, pytest.raises(IntegrityError) as caught:
        pull(remote_to(proxy.host), folder)
    assert caught.value.message.splitlines()[1].startswith(f"  {BIG} chunk 1: expected sha256 ")
    (partial,) = folder.iterdir()
    assert partial.name.endswith(".partial")
    with FaultProxy(server.host) as proxy:
        assert pull(remote_to(proxy.host), folder).read_bytes() == big_tar.read_bytes()
        assert [asked.range for asked in proxy.of("GET") if asked.range] == [f"bytes={SECOND}"]
    assert not partial.exists()


def test_a_pull_that_was_killed_goes_on(
    server: RegistryServer, big_tar: Path, builder: Builder, tmp_path: Path
) -> None:
    push(big_tar, remote_to(server.host))
    killed = threading.Event()

    def decide(asked: Asked, _: int) -> Fault | None:
        if asked.range == f"bytes={SECOND}":
            killed.wait(60)
        return None

    folder = tmp_path / "pulled"
    with FaultProxy(server.host, decide) as proxy:
        words = ("pull", f"oci://{proxy.host}/{REPOSITORY}:1.0.0", "--plain-http", "--output", folder)
        process = builder.start(*words)
        try:
            place = big_tar.read_bytes().index(WEIGHTS[:64])
            wait_for(lambda: has(folder, place, WEIGHTS[:CHUNK_SIZE]))
            wait_for(lambda: has(folder, place + 2 * CHUNK_SIZE, WEIGHTS[2 * CHUNK_SIZE :]))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        killed.set()
        time.sleep(0.2)
        proxy.asked.clear()
        document = builder.json(*words)
        assert [asked.range for asked in proxy.of("GET") if asked.range] == [f"bytes={SECOND}"]
    assert document["kept"] >= BIG_SIZE - CHUNK_SIZE
    assert Path(document["bundle"]).read_bytes() == big_tar.read_bytes()


def has(folder: Path, place: int, data: bytes) -> bool:
    """Whether the partial file of a pull has ``data`` at ``place``."""
    paths = list(folder.glob(".*.partial")) if folder.exists() else []
    if not paths:
        return False
    with paths[0].open("rb") as stream:
        stream.seek(place)
        return stream.read(len(data)) == data


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# As a person types it.


def test_push_and_pull_by_hand(server: RegistryServer, tar: Path, key: Key, second_key: Key, builder: Builder) -> None:
    place = f"oci://{server.host}/{REPOSITORY}:1.0.0"
    pushed = builder.run("push", tar, place, "--plain-http")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f"{place} is {tar.name}: ")
    document = builder.json("push", tar, place, "--plain-http")
    digest = f"sha256:{sha256_hex(server.manifest('1.0.0'))}"
    assert (document["sent"], document["digest"], document["reference"]) == (0, digest, place)
    words = ("pull", place, "--plain-http", "--output", builder.folder / "here")
    code, said = builder.refused(*words, "--trust", second_key.allowed_signers)
    assert code == 4
    assert not (builder.folder / "here").exists()
    pulled = builder.run(*words, "--trust", key.allowed_signers)
    assert pulled.returncode == 0, pulled.stderr
    bundle = builder.folder / "here" / tar.name
    assert bundle.read_bytes() == tar.read_bytes()
    assert pulled.stdout.splitlines()[-1].startswith(f"signed by {key.identity} SHA256:")
    code, said = builder.refused(*words)
    assert (code, said.splitlines()[0]) == (2, f"error: {bundle}: is there already")
    bundle.unlink()
    assert "signatures were not looked at" in builder.run(*words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("push", "BUNDLE", "host/repo:1"), "host/repo:1: is not oci://HOST/REPO:TAG"),
        (("push", "BUNDLE", "oci://host/repo"), "oci://host/repo: has no tag"),
        (("push", "oci://host/a:1", "oci://host/b:1"), "oci:/host/a:1: this command reads no registry"),
        (("sign", "oci://host/a:1", "--key", "KEY"), "oci:/host/a:1: this command reads no registry"),
        (("pull", "oci://host/repo:1+2", "--output", "x"), "oci://host/repo:1+2: '1+2' is not a tag"),
    ],
)
def test_what_a_person_may_mistype(builder: Builder, tar: Path, key: Key, words: tuple[str, ...], message: str) -> None:
    names = {"BUNDLE": str(tar), "KEY": str(key.path)}
    code, said = builder.refused(*(names.get(word, word) for word in words))
    assert (code, said.splitlines()[0]) == (2, f"error: {message}")


def test_two_pulls_at_once(server: RegistryServer, tar: Path, tmp_path: Path) -> None:
    push(tar, remote_to(server.host))
    with open_medium(remote_to(server.host)) as medium:
        partial = tmp_path / f".{tar.name}.{sha256_hex(medium.manifest_bytes)[:12]}.partial"
        with locked(partial), pytest.raises(UsageError, match=r"another pull is writing it$"):
            pull_bundle(medium, tmp_path, Silent())
