"""Reading a bundle from a real registry: faults on the way, logins, TLS, and what isn't a bundle."""

import contextlib
import hashlib
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bundler.publishing.registries import layers_of, push_bundle
from manifests.artifact import (
    EMPTY,
    EMPTY_DIGEST,
    MAX_ARTIFACT_SIZE,
    OCI_INDEX,
    TITLE,
    encode_artifact,
    parse_artifact,
)
from manifests.bundle import verify_content, verify_trust
from manifests.digests import CHUNK_SIZE, sha256_hex
from manifests.errors import IntegrityError, SourceError, TrustError, UsageError
from manifests.manifest import parse_manifest
from manifests.medium import open_medium
from manifests.ocimedium import OciMedium
from manifests.pieces import Silent, Stopped
from manifests.reference import Patience, Reference, Remote, is_reference, parse_reference
from manifests.registry_auth import Challenge, Login, find_login, parse_challenges
from tests.factories import NOW, SMALL_FILES, Content, Key, make_bundle, make_manifest
from tests.factories_proxy import Asked, Fault, FaultProxy
from tests.factories_registry import (
    PASSWORD,
    QUICK,
    REPOSITORY,
    USER,
    RegistryServer,
    TokenServer,
    basic_auth,
    free_port,
    login_file,
    private_ca,
    registry_server,
    remote_to,
)

BIG = "models/big/weights.bin"
BIG_SIZE = CHUNK_SIZE + 3_000_000
FILES: dict[str, Content] = {**SMALL_FILES, "models/copy/config.json": b"{}\n"}
NOBODY: dict[str, str] = {"HOME": "/nonexistent"}
"""An environment without any login."""


@pytest.fixture(scope="module")
def random_bytes() -> bytes:
    return hashlib.shake_128(b"weights").digest(BIG_SIZE)


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """A small bundle, two of whose files have one content."""
    return make_bundle(tmp_path_factory.mktemp("tar"), FILES, key=key, executable=["bootstrap/install.sh"])


@pytest.fixture(scope="module")
def big_tar(tmp_path_factory: pytest.TempPathFactory, key: Key, random_bytes: bytes) -> Path:
    """A bundle with a file of two chunks."""
    return make_bundle(tmp_path_factory.mktemp("big"), {**FILES, BIG: random_bytes}, key=key)


def push(tar: Path, remote: Remote, environment: dict[str, str] | None = None) -> None:
    with open_medium(tar) as medium:
        push_bundle(medium, remote, Silent(), environment or NOBODY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tar: Path, big_tar: Path) -> Iterator[RegistryServer]:
    """A registry that wants no login, with both bundles; never damage it."""
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        push(tar, remote_to(running.host))
        push(big_tar, remote_to(running.host, "big"))
        yield running


@pytest.fixture
def own(tmp_path: Path, tar: Path) -> Iterator[RegistryServer]:
    """A registry with the small bundle that a test may damage."""
    with registry_server(tmp_path / "registry") as running:
        push(tar, remote_to(running.host))
        yield running


def verify(remote: Remote, key: Key, environment: dict[str, str] | None = None) -> None:
    with contextlib.closing(OciMedium(remote, environment or NOBODY)) as medium:
        bundle = verify_trust(medium, key.trust, now=NOW)
        verify_content(medium, bundle.manifest, Silent(), threads=2)


# The address.


def test_a_reference() -> None:
    found = parse_reference("oci://registry.example:5000/team/rag-trace:1.0.0")
    assert found == Reference(host="registry.example:5000", repository="team/rag-trace", tag="1.0.0")
    assert str(found) == "oci://registry.example:5000/team/rag-trace:1.0.0"
    digest = f"oci://[::1]:5000/a__b@sha256:{'a' * 64}"
    assert (parse_reference(digest).is_digest, str(parse_reference(digest))) == (True, digest)
    assert str(parse_reference(f"oci://h/a:tag@sha256:{'a' * 64}")) == f"oci://h/a@sha256:{'a' * 64}"
    assert (is_reference("OCI://h/a:1"), is_reference("oci/x.bundle.tar"), is_reference("-")) == (True, False, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oci://host/repo", "oci://host/repo: has no tag"),
        ("oci://host/repo:", "oci://host/repo:: has no tag"),
        ("oci://host", "oci://host: '' is not a repository: lower-case letters, digits, ._-/"),
        ("oci:///repo:1", "oci:///repo:1: '' is not a host"),
        ("oci://host:99999/repo:1", "oci://host:99999/repo:1: 'host:99999' is not a host"),
        ("oci://ho st/repo:1", "oci://ho st/repo:1: 'ho st' is not a host"),
        ("oci://host/Repo:1", "oci://host/Repo:1: 'Repo' is not a repository: lower-case letters, digits, ._-/"),
        ("oci://host/../x:1", "oci://host/../x:1: '../x' is not a repository: lower-case letters, digits, ._-/"),
        ("oci://host/repo:1.0+cpu", "oci://host/repo:1.0+cpu: '1.0+cpu' is not a tag"),
        ("oci://host/repo@sha256:12", "oci://host/repo@sha256:12: 'sha256:12' is not a tag"),
        ("oci://host/repo@abc", "oci://host/repo@abc: 'abc:' is not a tag"),
        ("oci://me:secret@host/repo:1", "oci://...@host: a login can't stand in the address"),
    ],
)
def test_what_is_no_reference(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.message == message
    assert "secret" not in caught.value.render()


# Reading.


def test_a_bundle_is_read_as_it_was_pushed(server: RegistryServer, tar: Path, key: Key) -> None:
    with open_medium(tar) as one, contextlib.closing(OciMedium(remote_to(server.host), NOBODY)) as other:
        assert (other.manifest_bytes, other.signature_slot) == (one.manifest_bytes, one.signature_slot)
        assert (other.label, other.delta, other.ordered) == (f"oci://{server.host}/{REPOSITORY}:1.0.0", None, False)
        manifest = verify_trust(other, key.trust, now=NOW).manifest
        other.check_layout(manifest)
        verify_content(other, manifest, Silent(), deep=True)
        entry = next(entry for entry in manifest.files if entry.path == "models/tiny/model.safetensors")
        buffer = bytearray(entry.size + 5)
        with other.reader(entry) as read:
            assert read(memoryview(buffer)[:7], 10) == 7  # out of order, and past the end
            assert buffer[:7] == bytes(range(10, 17))
            assert read(memoryview(buffer), 0) == entry.size
        assert buffer[: entry.size] == bytes(range(256)) * 9
        assert (other.parts(entry, 0, 1), other.volumes_of(entry, 0, 1), other.carries(entry)) == ((), (), True)


def test_by_digest(server: RegistryServer, key: Key) -> None:
    digest = f"sha256:{sha256_hex(server.manifest('1.0.0'))}"
    remote = remote_to(server.host, digest)
    with contextlib.closing(OciMedium(remote, NOBODY)) as medium:
        assert (medium.artifact_digest, medium.label) == (digest, f"oci://{server.host}/{REPOSITORY}@{digest}")

    def decide(asked: Asked, _: int) -> Fault | None:
        return Fault(flip=5) if "/manifests/" in asked.path else None

    with FaultProxy(server.host, decide) as proxy, pytest.raises(IntegrityError, match="with another digest, sha256:"):
        verify(remote_to(proxy.host, digest), key)


def test_a_chunk_is_one_request(server: RegistryServer, key: Key) -> None:
    with FaultProxy(server.host) as proxy:
        verify(remote_to(proxy.host, "big"), key)
        digest = sha256_hex(hashlib.shake_128(b"weights").digest(BIG_SIZE))
        ranges = sorted(asked.range for asked in proxy.of("GET", digest))
        assert ranges == [f"bytes=0-{CHUNK_SIZE - 1}", f"bytes={CHUNK_SIZE}-{BIG_SIZE - 1}"]
        assert len(proxy.of("GET", sha256_hex(b"{}\n"))) == 2  # two files of one content, each verified


# Faults on the way.


def weights(size: int, **fault: object) -> Callable[[Asked, int], Fault | None]:
    """Do harm to the first ``size`` requests for the bytes of the big file."""
    digest = sha256_hex(hashlib.shake_128(b"weights").digest(BIG_SIZE))

    def decide(asked: Asked, number: int) -> Fault | None:
        wanted = asked.method == "GET" and digest in asked.path and number < size
        return Fault(**fault) if wanted else None  # type: ignore[arg-type] # each test gives the field's own type

    return decide


def test_a_connection_that_is_cut_goes_on_from_there(server: RegistryServer, key: Key) -> None:
    said: list[str] = []
    with FaultProxy(server.host, weights(2, cut=2_000_000)) as proxy:
        verify(remote_to(proxy.host, "big", report=said.append), key)
        wanted = [asked for asked in proxy.of("GET", "blobs") if asked.range]
        assert sorted(asked.range for asked in wanted) == sorted(
            [
                f"bytes=0-{CHUNK_SIZE - 1}",
                f"bytes=2000000-{CHUNK_SIZE - 1}",
                f"bytes={CHUNK_SIZE}-{BIG_SIZE - 1}",
                f"bytes={CHUNK_SIZE + 2_000_000}-{BIG_SIZE - 1}",
            ]
        )
        assert sum(asked.given for asked in wanted) == BIG_SIZE  # nothing came twice
    assert said == [f"{BIG}: the answer ended too early; trying again in 0 s"] * 2


def test_a_registry_that_ignores_ranges(server: RegistryServer, key: Key) -> None:
    """A first chunk is had by reading what isn't needed; only what lies far behind would be too much."""
    with FaultProxy(server.host, weights(9, no_range=True)) as proxy:
        verify(remote_to(proxy.host, "big"), key)


def test_busy_and_then_not(server: RegistryServer, key: Key) -> None:
    said: list[str] = []

    def decide(asked: Asked, number: int) -> Fault | None:
        if asked.method != "GET" or number:
            return None
        wait = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"} if "1.0.0" in asked.path else {"Retry-After": "0"}
        return Fault(status=429 if "/manifests/" in asked.path else 503, headers=wait)

    with FaultProxy(server.host, decide) as proxy:
        verify(remote_to(proxy.host, report=said.append), key)
    assert said[0] == "its OCI manifest: too many requests (429); trying again in 0 s"
    assert "manifest.json: it answers (503); trying again in 0 s" in said


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=429, headers={"Retry-After": "3600"}), "too many requests (429), and asks to wait 3600 s"),
        (Fault(status=503), "it answers (503); 3 attempts"),
        (Fault(status=403), "access is denied (403)"),
        (Fault(cut=1), "the answer ended too early; 3 attempts"),
        (Fault(hang_up="before"), "the connection was cut; 3 attempts"),
    ],
)
def test_giving_up(server: RegistryServer, key: Key, fault: Fault, message: str) -> None:
    wheel = SMALL_FILES["wheels/demo-1.0.0-py3-none-any.whl"]

    def decide(asked: Asked, _: int) -> Fault | None:
        return fault if asked.method == "GET" and sha256_hex(wheel) in asked.path else None

    with FaultProxy(server.host, decide) as proxy:
        with pytest.raises(SourceError) as caught:
            verify(remote_to(proxy.host), key)
        where = f"oci://{proxy.host}/{REPOSITORY}:1.0.0: wheels/demo-1.0.0-py3-none-any.whl: "
        assert caught.value.message == where + message


def test_a_stop_ends_the_wait(server: RegistryServer) -> None:
    stopped = threading.Event()
    stopped.set()
    with FaultProxy(server.host, lambda _asked, _number: Fault(status=503)) as proxy, pytest.raises(Stopped):
        OciMedium(remote_to(proxy.host, stopped=stopped, patience=Patience(first_delay=500)), NOBODY)


def test_nobody_there() -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(SourceError) as caught:
        OciMedium(remote_to(host), NOBODY)
    assert caught.value.message == f"oci://{host}/{REPOSITORY}:1.0.0: its OCI manifest: connection refused"


def test_no_such_tag(server: RegistryServer) -> None:
    with pytest.raises(SourceError) as caught:
        OciMedium(remote_to(server.host, "2.0.0"), NOBODY)
    where = f"oci://{server.host}/{REPOSITORY}:2.0.0: the registry has no such tag"
    assert caught.value.message == f"{where} (it answers (404 MANIFEST_UNKNOWN: manifest unknown))"
    assert caught.value.hint == f"skopeo list-tags docker://{server.host}/{REPOSITORY} says what is there"


def test_wrong_bytes_name_the_chunk(server: RegistryServer, key: Key) -> None:
    with FaultProxy(server.host, weights(1, flip=2_500_000)) as proxy:
        with pytest.raises(IntegrityError) as caught:
            verify(remote_to(proxy.host, "big"), key)
        first, second = caught.value.message.splitlines()
        assert first == f"oci://{proxy.host}/{REPOSITORY}:big: 1 problem:"
        assert second.startswith(f"  {BIG} chunk ")
        assert "expected sha256 " in second


def test_wrong_bytes_of_the_manifest_never_reach_a_parser(server: RegistryServer, tar: Path) -> None:
    with open_medium(tar) as medium:
        digest = sha256_hex(medium.manifest_bytes)

    def decide(asked: Asked, _: int) -> Fault | None:
        return Fault(flip=100) if digest in asked.path else None

    with FaultProxy(server.host, decide) as proxy, pytest.raises(IntegrityError) as caught:
        OciMedium(remote_to(proxy.host), NOBODY)
    assert f": manifest.json: expected sha256:{digest}, got sha256:" in caught.value.message


def test_by_a_proxy(server: RegistryServer, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FaultProxy(server.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:word@{proxy.host}")
        verify(remote_to(server.host), key)
        asked = proxy.of("GET", "/manifests/")
        assert [one.path for one in asked] == [f"http://{server.host}/v2/{REPOSITORY}/manifests/1.0.0"]
        assert [one.proxy_authorization for one in asked] == ["Basic bWU6d29yZA=="]
        proxy.asked.clear()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        verify(remote_to(server.host), key)
        assert proxy.asked == []


# What is wrong in the registry.


def test_blobs_that_are_gone_are_all_named(own: RegistryServer, key: Key) -> None:
    lost = ("bootstrap/install.sh", "models/tiny/model.safetensors")
    digests = {}
    for path in lost:
        digests[path] = sha256_hex(SMALL_FILES[path])
        own.forget(digests[path])
    with pytest.raises(IntegrityError) as caught:
        verify(remote_to(own.host), key)
    assert caught.value.message.splitlines() == [
        f"oci://{own.host}/{REPOSITORY}:1.0.0: 2 problems:",
        *(f"  {path}: the registry hasn't its blob sha256:{digests[path]}" for path in lost),
    ]
    assert caught.value.hint == "bundler push BUNDLE oci://... again: only what is missing is sent"


def test_a_blob_that_was_cut_on_the_registry_s_disk(own: RegistryServer, key: Key) -> None:
    path = "models/tiny/model.safetensors"
    blob = own.blob(sha256_hex(bytes(range(256)) * 9))
    os.truncate(blob, 100)
    with pytest.raises(IntegrityError) as caught:
        verify(remote_to(own.host), key)
    assert f"{path}: the registry's blob has 100 bytes, expected 2304" in caught.value.message


def test_an_answer_shorter_than_the_blob(server: RegistryServer, key: Key) -> None:
    """The length that a proxy announces is believed only for as long as the digest agrees."""
    digest = sha256_hex(bytes(range(256)) * 9)

    def decide(asked: Asked, _: int) -> Fault | None:
        return Fault(shorten=304) if asked.method == "GET" and digest in asked.path else None

    with FaultProxy(server.host, decide) as proxy, pytest.raises(IntegrityError) as caught:
        verify(remote_to(proxy.host), key)
    lines = caught.value.message.splitlines()
    assert lines[1:] == [f"  models/tiny/model.safetensors: expected sha256 {digest}, got only 2000 of 2304 bytes"]


def test_another_s_signature_is_refused_whatever_the_registry_says(
    own: RegistryServer, key: Key, second_key: Key, tmp_path: Path
) -> None:
    push(make_bundle(tmp_path / "other.tar", FILES, key=second_key), remote_to(own.host))
    with pytest.raises(TrustError):
        verify(remote_to(own.host), key)


def changed(data: bytes, change: Callable[[list[dict[str, object]]], object]) -> bytes:
    document = json.loads(data)
    change(document["layers"])
    return json.dumps(document).encode()


def titled(layer: dict[str, object], title: str) -> None:
    layer["annotations"] = {TITLE: title}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers.pop(), "docs/long/"),
        (lambda layers: layers.append(layers[2] | {"annotations": {TITLE: "evil\x1b.sh"}}), "'evil\\x1b.sh': not in"),
        (lambda layers: titled(layers[2], "bootstrap/other.sh"), "bootstrap/install.sh: missing"),
        (lambda layers: layers[2].update(size=3), "bootstrap/install.sh: 3 bytes, expected 17"),
        (lambda layers: layers[2].update(size=17, digest=layers[3]["digest"]), "its layer is sha256:"),
    ],
)
def test_layers_that_are_not_the_manifest_s(
    server: RegistryServer, key: Key, change: Callable[[list[dict[str, object]]], object], message: str
) -> None:
    server.put_manifest("changed", changed(server.manifest("1.0.0"), change))
    with pytest.raises(IntegrityError) as caught:
        verify(remote_to(server.host, "changed"), key)
    assert message in caught.value.message


GOOD_LAYER = {"digest": f"sha256:{'a' * 64}", "size": 1, "annotations": {TITLE: "x"}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"\xff", "what the registry has there is not an OCI manifest"),
        (b"[" * 100_000, "what the registry has there is not an OCI manifest"),
        (b"[]", "what the registry has there is not an OCI manifest"),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, f"is not a bundle but {OCI_INDEX}"),
        ({"schemaVersion": 2, "layers": [5]}, "layer 0: is not a table"),
        ({"schemaVersion": 2, "layers": [{**GOOD_LAYER, "annotations": {}}]}, "layer 0: has no title, so this is not"),
        ({"schemaVersion": 2, "layers": [{**GOOD_LAYER, "digest": "sha512:1"}]}, "layer 0: its digest is sha512:1"),
        ({"schemaVersion": 2, "layers": [{**GOOD_LAYER, "size": -1}]}, "layer 0: its size is -1"),
        ({"schemaVersion": 2, "layers": [{**GOOD_LAYER, "size": True}]}, "layer 0: its size is True"),
        ({"schemaVersion": 2, "layers": [GOOD_LAYER, GOOD_LAYER]}, "two layers are called x"),
        (b" " * (MAX_ARTIFACT_SIZE + 1), f"its OCI manifest has more than {MAX_ARTIFACT_SIZE} bytes"),
    ],
)
def test_what_is_no_bundle(document: object, message: str) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(IntegrityError) as caught:
        parse_artifact(data, where="oci://h/a:1")
    assert caught.value.message.startswith(f"oci://h/a:1: {message}")


def test_a_container_image_is_no_bundle(server: RegistryServer) -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": EMPTY_DIGEST, "size": len(EMPTY)}
    document = {"schemaVersion": 2, "config": layer, "layers": [layer]}
    server.put_manifest("image", json.dumps(document).encode())
    with pytest.raises(IntegrityError, match="layer 0: has no title, so this is not a bundle"):
        OciMedium(remote_to(server.host, "image"), NOBODY)


def test_too_many_files_for_one_oci_manifest(tar: Path) -> None:
    with open_medium(tar) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        layers = list(layers_of(medium, manifest))
    many = [replace(layers[-1], title=f"app/{number:06}") for number in range(30_000)]
    with pytest.raises(UsageError) as caught:
        encode_artifact(make_manifest(FILES), many)
    assert caught.value.message.startswith(f"{manifest.stem}: 30000 files make an OCI manifest of ")
    assert caught.value.message.endswith(f" bytes, registries accept at most {MAX_ARTIFACT_SIZE}")


# Logins.


def test_a_password(tmp_path: Path, tar: Path, key: Key) -> None:
    with registry_server(tmp_path / "registry", auth=basic_auth(tmp_path)) as server:
        path = login_file(tmp_path / "auth.json", server.host)
        good = {**NOBODY, "REGISTRY_AUTH_FILE": str(path)}
        push(tar, remote_to(server.host), good)
        verify(remote_to(server.host), key, good)
        hint = (
            f"podman login {server.host}, docker login {server.host}, or REGISTRY_AUTH_FILE=FILE; then the same again"
        )
        with pytest.raises(SourceError) as caught:
            verify(remote_to(server.host), key)
        assert caught.value.message == f"{server.host}/{REPOSITORY}: it asks for a login, and none was found"
        assert caught.value.hint == hint
        login_file(path, server.host, "wrong")
        with pytest.raises(SourceError) as caught:
            verify(remote_to(server.host), key, good)
        assert caught.value.message == f"{server.host}/{REPOSITORY}: the login isn't accepted"


def test_tokens(tmp_path: Path, tar: Path, key: Key) -> None:
    with (
        contextlib.closing(TokenServer(tmp_path)) as tokens,
        registry_server(tmp_path / "registry", auth=tokens.auth) as server,
    ):
        good = {**NOBODY, "DOCKER_CONFIG": str(login_file(tmp_path / "config.json", server.host).parent)}
        push(tar, remote_to(server.host), good)
        assert tokens.asked[0][0] == f"repository:{REPOSITORY}:pull,push"
        assert len(tokens.asked) <= 4  # one token for all, but for threads that were as fast
        tokens.asked.clear()
        verify(remote_to(server.host), key, good)
        basic = Login(user=USER, password=PASSWORD).basic
        assert tokens.asked == [(f"repository:{REPOSITORY}:pull", basic)]
        with pytest.raises(SourceError, match=r"the token server 127\.0\.0\.1:[0-9]+ refuses the login \(401\)"):
            verify(remote_to(server.host), key)
        with pytest.raises(SourceError, match="names a token server without TLS, or none: http://127"):
            verify_over_tls(server, tmp_path, key, good)


def verify_over_tls(server: RegistryServer, folder: Path, key: Key, environment: dict[str, str]) -> None:
    """Verify through a proxy that speaks TLS."""
    _, ca = private_ca(folder / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls/server.pem", folder / "tls/server.key")
    with FaultProxy(server.host, tls=context) as proxy:
        verify(remote_to(proxy.host, plain_http=False, ca=ca), key, environment)


def test_an_identity_token_and_one_that_expires(tmp_path: Path, tar: Path) -> None:
    with (
        contextlib.closing(TokenServer(tmp_path)) as tokens,
        registry_server(tmp_path / "registry", auth=tokens.auth) as server,
    ):
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {f"https://{server.host}/v1/": {"identitytoken": "refreshing"}}}))
        environment = {**NOBODY, "REGISTRY_AUTH_FILE": str(path)}
        push(tar, remote_to(server.host), environment)
        assert {how for _, how in tokens.asked} == {"refresh_token"}
        tokens.asked.clear()
        medium = OciMedium(remote_to(server.host), environment)
        with contextlib.closing(medium):
            medium._registry._authorizer._until = 0.0  # as if minutes had passed
            medium.check_layout(parse_manifest(medium.manifest_bytes))
        assert len(tokens.asked) == 2


HELPER = """#!/bin/sh
read server
test "$1 $server" = "get {host}" || exit 9
echo '{{"ServerURL": "{host}", "Username": "builder", "Secret": "pass:word"}}'
"""


def test_a_credential_helper(tmp_path: Path, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry_server(tmp_path / "registry", auth=basic_auth(tmp_path)) as server:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"credsStore": "sealift-test", "auths": {server.host: {}}}))
        environment = {**NOBODY, "DOCKER_CONFIG": str(tmp_path)}
        with pytest.raises(UsageError) as caught:
            push(tar, remote_to(server.host), environment)
        missing = "names the credential helper docker-credential-sealift-test, which isn't there"
        assert caught.value.message == f"{path}: {missing}"
        helper = tmp_path / "bin/docker-credential-sealift-test"
        helper.parent.mkdir()
        helper.write_text(HELPER.format(host=server.host))
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
        push(tar, remote_to(server.host), environment)


def login(password: str) -> Login:
    return Login(user=USER, password=password)


def test_where_logins_are_found(tmp_path: Path) -> None:
    reference = Reference(host="h:5000", repository="team/demo", tag="1")
    docker = login_file(tmp_path / ".docker/config.json", "h:5000", "docker")
    environment = {"HOME": str(tmp_path)}
    assert find_login(reference, {"HOME": str(tmp_path / "empty")}) is None
    assert find_login(reference, environment) == login("docker")
    login_file(tmp_path / ".config/containers/auth.json", "h:5000/team", "podman")
    assert find_login(reference, environment) == login("podman")
    login_file(tmp_path / "run/containers/auth.json", "h:5000", "session")
    with_session = {**environment, "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert find_login(reference, with_session) == login("session")
    chosen = login_file(tmp_path / "chosen.json", "other", "x")
    assert find_login(reference, {**with_session, "REGISTRY_AUTH_FILE": str(chosen)}) is None
    assert "docker" not in repr(login("docker"))
    docker.write_text('{"auths": {"h:5000": {"auth": "!!"}}}')
    with pytest.raises(UsageError) as caught:
        find_login(reference, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "empty")})
    assert caught.value.message == f"{docker}: auths.h:5000.auth is not base64 of USER:PASSWORD"
    docker.write_text("[]")
    with pytest.raises(UsageError, match=r"config\.json: is not a JSON object"):
        find_login(reference, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "empty")})


def test_challenges() -> None:
    value = 'Bearer realm="https://a/token?x=1",service="reg, istry",scope="repository:a:pull,push"'
    bearer = Challenge(
        scheme="bearer", realm="https://a/token?x=1", service="reg, istry", scope="repository:a:pull,push"
    )
    assert parse_challenges([value, "Basic realm=plain", "Negotiate"]) == [
        bearer,
        Challenge(scheme="basic", realm="plain"),
    ]


def test_a_login_is_not_sent_along_with_a_redirect(tmp_path: Path, tar: Path, key: Key) -> None:
    """Registries send whoever asks for a blob to an object store, which has no business with the password."""
    seen: list[str | None] = []
    wheel = SMALL_FILES["wheels/demo-1.0.0-py3-none-any.whl"]

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(wheel)))
            self.end_headers()
            self.wfile.write(wheel)

        def log_message(self, *_: object) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as store,
        registry_server(tmp_path / "registry", auth=basic_auth(tmp_path)) as server,
    ):
        threading.Thread(target=store.serve_forever, daemon=True).start()
        there = {"Location": f"http://127.0.0.1:{store.server_address[1]}/object"}

        def decide(asked: Asked, _: int) -> Fault | None:
            wanted = asked.method == "GET" and sha256_hex(wheel) in asked.path
            return Fault(status=307, headers=there) if wanted else None

        with FaultProxy(server.host, decide) as proxy:
            environment = {**NOBODY, "REGISTRY_AUTH_FILE": str(login_file(tmp_path / "auth.json", proxy.host))}
            push(tar, remote_to(proxy.host), environment)
            verify(remote_to(proxy.host), key, environment)
            assert proxy.of("GET", sha256_hex(wheel))[-1].authorization.startswith("Basic ")
        store.shutdown()
    assert seen == [None]


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:port/", "http://[::1/", "http://h/\xe9", "http://127.0.0.1:99999/", "http://h:0/"],
)
def test_a_location_that_is_none(server: RegistryServer, location: str) -> None:
    fault = Fault(status=302, headers={"Location": location})
    with FaultProxy(server.host, lambda _asked, _number: fault) as proxy, pytest.raises(SourceError) as caught:
        OciMedium(remote_to(proxy.host), NOBODY)
    assert caught.value.message == f"{proxy.host}: leads to what is no address: {location}"


@pytest.mark.parametrize(
    ("challenge", "message"),
    [
        ("Negotiate", "asks for a login in a way that isn't known here"),
        ("Bearer", "leads to what is no address: "),
        ('Bearer realm="file:///etc/passwd"', "leads to what is no address: file:///etc/passwd"),
        ('Bearer realm="gopher://h/x"', "names a token server without TLS, or none: gopher://h/x"),
    ],
)
def test_a_challenge_that_is_none(server: RegistryServer, challenge: str, message: str) -> None:
    fault = Fault(status=401, headers={"WWW-Authenticate": challenge})
    with FaultProxy(server.host, lambda _asked, _number: fault) as proxy, pytest.raises(SourceError) as caught:
        OciMedium(remote_to(proxy.host), NOBODY)
    assert caught.value.message == f"{proxy.host}: {message}"


def test_a_registry_that_is_never_content_with_a_token(tmp_path: Path, server: RegistryServer) -> None:
    with contextlib.closing(TokenServer(tmp_path)) as tokens:
        fault = Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="test"'})
        with FaultProxy(server.host, lambda _asked, _number: fault) as proxy:
            environment = {**NOBODY, "REGISTRY_AUTH_FILE": str(login_file(tmp_path / "auth.json", proxy.host))}
            with pytest.raises(SourceError, match=r": the registry accepts none of the tokens$"):
                OciMedium(remote_to(proxy.host), environment)
        assert len(tokens.asked) == 3


# TLS.


def test_a_private_ca(tmp_path: Path, tar: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    section, ca = private_ca(tmp_path / "tls")
    with registry_server(tmp_path / "registry", tls=section) as server:
        remote = remote_to(server.host, plain_http=False, ca=ca)
        push(tar, remote)
        verify(remote, key)
        with pytest.raises(SourceError) as caught:
            verify(replace(remote, ca=None), key)
        assert caught.value.message.startswith(f"{server.host}: its certificate isn't trusted: ")
        assert caught.value.hint is not None
        assert "--ca FILE" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        verify(replace(remote, ca=None), key)
        with pytest.raises(SourceError, match=r"its OCI manifest|400"):
            verify(replace(remote, plain_http=True), key)


def test_tls_to_a_registry_without(server: RegistryServer, key: Key) -> None:
    with pytest.raises(SourceError) as caught:
        verify(remote_to(server.host, plain_http=False), key)
    assert caught.value.message == f"{server.host}: doesn't speak TLS"
    assert caught.value.hint == "if it is meant to be without: --plain-http"


def test_from_https_to_http_is_not_followed(server: RegistryServer, tmp_path: Path) -> None:
    _, ca = private_ca(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls/server.pem", tmp_path / "tls/server.key")
    there = Fault(status=302, headers={"Location": f"http://{server.host}/v2/"})
    with (
        FaultProxy(server.host, lambda _asked, _number: there, tls=context) as proxy,
        pytest.raises(SourceError, match=f"^{proxy.host} redirects from https to 'http'$"),
    ):
        OciMedium(remote_to(proxy.host, plain_http=False, ca=ca), NOBODY)


@pytest.mark.parametrize(("text", "message"), [("nothing", "holds no certificates"), (None, "can't be read: ")])
def test_a_bad_ca_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=f"^--ca {path}: {message}"):
        OciMedium(Remote(reference=parse_reference("oci://h/a:1"), ca=path, patience=QUICK))
