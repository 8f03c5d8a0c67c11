"""Installing from a registry: the real runtime.pyz against a real registry on loopback, as an operator runs it."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.publishing.registries import push_bundle
from manifests.digests import CHUNK_SIZE
from manifests.medium import open_medium
from manifests.pieces import Silent
from tests.factories import Key, make_bundle, tree_of
from tests.factories_closed import BIG_PATH, BIG_SIZE, ClosedBundle, Host, flip_bit
from tests.factories_proxy import Asked, Fault, FaultProxy
from tests.factories_registry import (
    REPOSITORY,
    RegistryServer,
    basic_auth,
    login_file,
    private_ca,
    registry_server,
    remote_to,
)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, first: ClosedBundle, second: ClosedBundle, chunked: ClosedBundle
) -> Iterator[RegistryServer]:
    """A registry with three bundles; never damage it."""
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        for bundle, tag in ((first, "1.0.0"), (second, "2.0.0"), (chunked, "chunked")):
            push(bundle.tar, running.host, tag)
        yield running


def push(tar: Path, host: str, tag: str) -> None:
    with open_medium(tar) as medium:
        push_bundle(medium, remote_to(host, tag), Silent(), {"HOME": "/nonexistent"})


def words_for(bundle: ClosedBundle, host: Host, *words: str | Path) -> list[str]:
    return [str(word) for word in host.runtime_words(bundle.pyz, *words)]


def run(
    host: Host, bundle: ClosedBundle, *words: str | Path, plain: bool = True, **more: str
) -> "subprocess.CompletedProcess[str]":
    """Run a runtime command on the host, which sees loopback here; ``more`` goes into its environment."""
    return subprocess.run(
        [*words_for(bundle, host, *words), *(["--plain-http"] if plain else [])],
        env={**host.environment, **more},
        cwd=host.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def place(host: str, tag: str) -> str:
    return f"oci://{host}/{REPOSITORY}:{tag}"


def fetched(proxy: FaultProxy) -> set[str]:
    """Return the digests of the blobs that were fetched through a proxy."""
    return {asked.path.rpartition(":")[2] for asked in proxy.of("GET", "/blobs/")}


def test_install_verify_and_upgrade(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle, server: RegistryServer
) -> None:
    prefix = tmp_path / "prefix"
    to_prefix = ("--prefix", prefix, "--trust", first.trust)
    looked = run(host, first, "preflight", place(server.host, "1.0.0"), "--prefix", prefix)
    assert looked.returncode == 0, looked.stderr
    assert not prefix.exists()
    good = run(host, first, "verify", place(server.host, "1.0.0"), "--trust", first.trust)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(f"good: {first.manifest.stem}, {len(first.manifest.files)} files")
    done = run(host, first, "install", place(server.host, "1.0.0"), *to_prefix, "--no-smoke")
    assert done.returncode == 0, done.stderr
    release = (prefix / "current").resolve()
    for entry in first.manifest.files:
        assert (release / entry.path).stat().st_size == entry.size
    assert host.runtime(first.pyz, "verify", "--prefix", prefix).returncode == 0
    held = {entry.sha256 for entry in first.manifest.files}
    with FaultProxy(server.host) as proxy:
        upgraded = run(host, second, "install", place(proxy.host, "2.0.0"), *to_prefix, "--no-smoke")
        assert upgraded.returncode == 0, upgraded.stderr
        new = {entry.sha256 for entry in second.manifest.files} - held
        assert fetched(proxy) & held == set()  # what the prefix has isn't fetched
        assert new <= fetched(proxy)
    assert list(prefix.rglob("*.partial")) == []


def test_a_registry_s_install_is_the_tar_s(tmp_path: Path, host: Host, first: ClosedBundle, installed: Path) -> None:
    with registry_server(tmp_path / "registry") as server:
        push(first.tar, server.host, "1.0.0")
        options = ("--prefix", tmp_path / "prefix", "--trust", first.trust)
        done = run(host, first, "install", place(server.host, "1.0.0"), *options)
        assert done.returncode == 0, done.stderr
    names = [entry.path for entry in first.manifest.files] + ["manifest.json", "manifest.json.sig"]
    one, other = (tree_of((prefix / "current").resolve()) for prefix in (installed, tmp_path / "prefix"))
    assert {name: one[name] for name in names} == {name: other[name] for name in names}
    assert one.keys() - {"receipt.json"} == other.keys() - {"receipt.json"}


def test_an_install_that_was_killed_goes_on(
    tmp_path: Path, host: Host, chunked: ClosedBundle, server: RegistryServer
) -> None:
    """What was verified stays: of the big file only the chunk that hadn't come is fetched by the next run."""
    prefix = tmp_path / "prefix"
    last = f"bytes={CHUNK_SIZE}-{BIG_SIZE - 1}"
    released = threading.Event()

    def decide(asked: Asked, number: int) -> Fault | None:
        if asked.range == last and number < 2:
            released.wait(60)
        return None

    with FaultProxy(server.host, decide) as proxy:
        words = ("install", place(proxy.host, "chunked"), "--prefix", prefix, "--trust", chunked.trust, "--no-smoke")
        command = [*words_for(chunked, host, *words), "--plain-http"]
        process = subprocess.Popen(command, env=host.environment, cwd=host.home, stderr=subprocess.PIPE)
        try:
            key = next(entry for entry in chunked.manifest.files if entry.path == BIG_PATH).store_key
            partial = prefix / "store/sha256" / key[:2] / f"{key}.partial"
            deadline = time.monotonic() + 60
            while not (partial.exists() and partial.stat().st_size == CHUNK_SIZE):
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()[1].decode()
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        released.set()
        proxy.of("GET")  # wait for the ends of its requests
        proxy.asked.clear()
        done = run(host, chunked, *words)
        assert done.returncode == 0, done.stderr
        assert [asked.range for asked in proxy.of("GET") if asked.range] == [last]
    assert list(prefix.rglob("*.partial")) == []


def test_the_registry_dies_and_comes_back(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    with registry_server(tmp_path / "registry") as server:
        push(first.tar, server.host, "1.0.0")
        wheel = first.manifest.of_kind("wheel")[0]

        def decide(asked: Asked, number: int) -> Fault | None:
            if asked.method == "GET" and wheel.sha256 in asked.path:
                if number == 0:
                    server.stop()
                elif server.process is None:
                    server.start()
            return None

        with FaultProxy(server.host, decide) as proxy:
            options = ("--prefix", tmp_path / "prefix", "--trust", first.trust, "--no-smoke")
            done = run(host, first, "install", place(proxy.host, "1.0.0"), *options)
    assert done.returncode == 0, done.stderr
    assert "; trying again in 1 s" in done.stderr


def test_whoever_isn_t_trusted_installs_nothing(
    tmp_path: Path, host: Host, first: ClosedBundle, other_key: Key, server: RegistryServer
) -> None:
    other = make_bundle(tmp_path, {"bootstrap/install.sh": b"#!/bin/sh\n"}, key=other_key)
    push(other, server.host, "other")
    options = ("--prefix", tmp_path / "prefix", "--trust", first.trust)
    with FaultProxy(server.host) as proxy:
        done = run(host, first, "install", place(proxy.host, "other"), *options)
        assert done.returncode == 4, done.stderr
        assert len(fetched(proxy)) == 2  # manifest and signatures, nothing of the payload
    assert not (tmp_path / "prefix").exists()


def test_wrong_bytes_are_named_and_the_live_release_stays(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle, server: RegistryServer
) -> None:
    options = ("--prefix", tmp_path / "prefix", "--trust", first.trust, "--no-smoke")
    assert run(host, first, "install", place(server.host, "1.0.0"), *options).returncode == 0
    live = (tmp_path / "prefix/current").readlink()
    click = next(entry for entry in second.manifest.files if entry.path.startswith("wheels/click-"))

    def decide(asked: Asked, _: int) -> Fault | None:
        return Fault(flip=1000) if click.sha256 in asked.path and asked.method == "GET" else None

    with FaultProxy(server.host, decide) as proxy:
        done = run(host, second, "install", place(proxy.host, "2.0.0"), *options)
    assert done.returncode == 5
    assert f"  {click.path}: expected sha256 {click.sha256}, got " in done.stderr
    assert (tmp_path / "prefix/current").readlink() == live
    again = run(host, second, "install", place(server.host, "2.0.0"), *options)
    assert again.returncode == 0, again.stderr


def test_repair_fetches_only_the_bad_chunk(
    tmp_path: Path, host: Host, chunked: ClosedBundle, server: RegistryServer
) -> None:
    prefix = tmp_path / "prefix"
    options = ("--prefix", prefix, "--trust", chunked.trust, "--no-smoke")
    assert run(host, chunked, "install", place(server.host, "chunked"), *options).returncode == 0
    big = (prefix / "current").resolve() / BIG_PATH
    big.chmod(0o644)
    flip_bit(big, CHUNK_SIZE + 5)
    with FaultProxy(server.host) as proxy:
        done = run(host, chunked, "repair", "--prefix", prefix, "--from", place(proxy.host, "chunked"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"# healed {BIG_PATH}\n" in done.stdout
        assert {asked.range for asked in proxy.of("GET") if asked.range} == {f"bytes={CHUNK_SIZE}-{BIG_SIZE - 1}"}
    listed = run(host, chunked, "repair", place(server.host, "chunked"), "--list", "--trust", chunked.trust)
    assert (listed.returncode, listed.stdout) == (0, "# 0 damaged chunks found, 0 remain\n")
    words = ("repair", place(server.host, "chunked"), "--from", chunked.tar, "--trust", chunked.trust)
    refused = run(host, chunked, *words)
    assert (refused.returncode, "isn't repaired in place" in refused.stderr) == (2, True)


def test_a_login_and_a_private_ca(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    section, ca = private_ca(tmp_path / "tls")
    with registry_server(tmp_path / "registry", auth=basic_auth(tmp_path), tls=section) as server:
        login = login_file(host.home / ".docker/config.json", server.host)
        remote = remote_to(server.host, plain_http=False, ca=ca)
        with open_medium(first.tar) as medium:
            push_bundle(medium, remote, Silent(), {"HOME": str(host.home)})
        words = ("verify", place(server.host, "1.0.0"), "--trust", first.trust)
        assert run(host, first, *words, "--ca", ca, plain=False).returncode == 0
        assert run(host, first, *words, plain=False, SSL_CERT_FILE=str(ca)).returncode == 0
        untrusted = run(host, first, *words, plain=False)
        assert (untrusted.returncode, "its certificate isn't trusted" in untrusted.stderr) == (3, True)
        login.unlink()
        anonymous = run(host, first, *words, "--ca", ca, plain=False)
        assert anonymous.returncode == 3
        words_of_it = f"error: {server.host}/{REPOSITORY}: it asks for a login, and none was found\n"
        assert anonymous.stderr.startswith(f"{words_of_it}hint: podman login {server.host}, docker login ")


def test_an_interrupt_ends_the_wait_for_a_busy_registry(
    host: Host, first: ClosedBundle, server: RegistryServer
) -> None:
    def decide(asked: Asked, _: int) -> Fault | None:
        busy = asked.method == "GET" and first.manifest.files[-1].sha256 in asked.path
        return Fault(status=429, headers={"Retry-After": "500"}) if busy else None

    with FaultProxy(server.host, decide) as proxy:
        words = ("verify", place(proxy.host, "1.0.0"), "--trust", first.trust, "--plain-http", "--json")
        process = subprocess.Popen(
            words_for(first, host, *words), env=host.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert process.stderr is not None
            line = process.stderr.readline().decode()
            assert line.endswith("too many requests (429); trying again in 500 s\n")
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, b"")
    assert b"stopped: " in err


def test_json(host: Host, first: ClosedBundle, server: RegistryServer) -> None:
    done = run(host, first, "verify", place(server.host, "1.0.0"), "--trust", first.trust, "--json")
    assert json.loads(done.stdout)["bundle"] == first.manifest.stem


def test_what_an_operator_may_mistype(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    for word in ("oci://host/repo", "oci:///repo:1"):
        done = run(host, first, "verify", word, "--trust", first.trust)
        assert (done.returncode, done.stderr.startswith(f"error: {word}: ")) == (2, True)
    assert list(tmp_path.glob("oci*")) == []
