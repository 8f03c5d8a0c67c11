"""Ray's options and refusals, where Ray isn't: in the environment that runs these tests."""

import argparse
import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import AdapterError, DiskError, UsageError
from runtime.cli.serving import add_serving_options, serving_options
from runtime.server.app import Limits
from runtime.server.rayserve.cluster import is_wildcard, node_command, prefix_of, prepare_ray
from runtime.server.rayserve.replica import LoadedApp, ReplicaPlan, load_app, manifest_sha256
from tests.factories_bulk import embed, end, make_prefix, write_texts
from tests.runtime.server.conftest import run_server

HINT = 'hint: add "ray[serve]" to [packages] requirements of the spec; then bundler lock, build, install'


def options(*words: str) -> list[str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    add_serving_options(parser)
    return serving_options(parser.parse_args(words))


def plan(release: Path, digest: str) -> ReplicaPlan:
    return ReplicaPlan(
        release=release,
        manifest_sha256=digest,
        models=(),
        on_demand=False,
        most=None,
        depth=4,
        limits=Limits(),
        keys=None,
        threads=1,
    )


def test_options_reach_the_server() -> None:
    assert options() == []
    given = options("--engine", "ray", "--replicas", "3", "--ray-address", "10.0.0.1:6379")
    assert given == ["--engine", "ray", "--replicas", "3", "--ray-address", "10.0.0.1:6379"]
    assert options("--engine", "ray", "--ray-node") == ["--engine", "ray", "--ray-node"]


@pytest.mark.parametrize("words", [["--replicas", "2"], ["--ray-address", "h:1"], ["--ray-node"]])
def test_options_of_ray_without_ray_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        options(*words)
    assert caught.value.message == f"{words[0]} is for --engine ray"


def test_a_node_serves_nothing() -> None:
    for words in (["--replicas", "2"], ["bge-m3"]):
        with pytest.raises(UsageError, match="--ray-node starts a node without models"):
            options("--engine", "ray", "--ray-node", *words)


@pytest.mark.slow
def test_launch_and_embed_without_ray_say_what_to_add(tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "prefix")
    for more in ([], ["--ray-node"]):
        done = run_server((prefix / "current").resolve(), "--port", "0", "--engine", "ray", *more)
        assert done.returncode == 9
        assert "error: --engine ray needs ray[serve], and this release has no ray" in done.stderr
        assert HINT in done.stderr
    texts = write_texts(tmp_path / "in.jsonl", ["one"])
    code, words = end(embed(prefix, texts, tmp_path / "out", "--engine", "ray"))
    assert code == 9
    assert HINT in words
    assert not (tmp_path / "out").exists()
    code, words = end(embed(prefix, texts, tmp_path / "out", "--ray-address", "h:1"))
    assert code == 2
    assert "--ray-address is for --engine ray" in words


def test_the_token_is_made_once_and_only_where_no_cluster_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "fastapi"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    environment: dict[str, str] = {}
    token = tmp_path / "etc" / "ray-token"
    with pytest.raises(AdapterError) as caught:
        prepare_ray(tmp_path, environment, joins=True)
    assert caught.value.message == f"{token}: no token for the Ray cluster"
    assert environment == {}
    prepare_ray(tmp_path, environment, joins=False)
    made = token.read_bytes()
    assert len(made) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", str(token))
    prepare_ray(tmp_path, environment, joins=True)
    assert token.read_bytes() == made


def test_the_command_of_a_node() -> None:
    head = node_command(host="10.0.0.1", port=6379, address=None, cpus=2, folder=Path("/opt/rag/var/ray"))
    text = " ".join(head)
    assert "start --block --disable-usage-stats --node-ip-address 10.0.0.1 --num-cpus 2" in text
    assert text.endswith("--head --port 6379 --include-dashboard false --temp-dir /opt/rag/var/ray")
    other = node_command(host="10.0.0.2", port=8000, address="10.0.0.1:6379", cpus=2, folder=Path("/" + "x" * 90))
    assert other[-2:] == ["--address", "10.0.0.1:6379"]
    with pytest.raises(DiskError, match="too long for Ray's sockets: 91 bytes, at most 40"):
        node_command(host="10.0.0.1", port=6379, address=None, cpus=2, folder=Path("/" + "x" * 90))


def test_which_addresses_are_every_node_s() -> None:
    assert [is_wildcard(host) for host in ("::", "::1", "10.0.0.1", "localhost")] == [True, False, False, False]


def test_a_replica_refuses_another_release_and_none(tmp_path: Path) -> None:
    release = (make_prefix(tmp_path / "prefix") / "current").resolve()
    assert prefix_of(release) == tmp_path / "prefix"
    with pytest.raises(AdapterError, match="expected the manifest 000000000000, got "):
        load_app(plan(release, "0" * 64))
    with pytest.raises(AdapterError, match=f"no release on node {os.uname().nodename}: No such file or directory"):
        load_app(plan(tmp_path, "0" * 64))


@pytest.mark.models
def test_a_replica_is_loaded_before_it_is_asked_and_stops_with_its_lifespan(tmp_path: Path) -> None:
    release = (make_prefix(tmp_path / "prefix") / "current").resolve()
    loaded = load_app(plan(release, manifest_sha256(release)))
    service = loaded.service
    assert (service.ready, service.healthy) == (True, True)
    assert sorted(service.loaded()) == ["chat", "mini"]
    asyncio.run(run_lifespan(loaded))
    assert (service.ready, service.healthy) == (False, False)


async def run_lifespan(loaded: LoadedApp) -> None:
    sent: list[Any] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:  # noqa: ANN401 - ASGI's message
        return next(events)

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's message
        sent.append(message["type"])

    await loaded({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
