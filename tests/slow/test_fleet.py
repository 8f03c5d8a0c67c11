"""The role on five hosts with sshd, in namespaces without a way out: four broken, each in its own way, then mended."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.fleet import render_fleet
from bundler.contents.render import Subject
from bundler.sealing.kit import CARRIED, write_kit
from tests.factories import Key, is_root, make_key
from tests.factories_closed import HOST_TARGET, ClosedBundle, closed_files, flip_bit, make_closed_bundle
from tests.factories_fleet import Fleet, FleetHost, Killer, Played, make_fleet, other_python
from tests.roots import PYTHON

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_root(), reason="namespaces with sshd need root")]
PREFIX: Final = "/opt/demo"
NAMES: Final = ("good", "full", "python", "tampered", "killed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """Two versions of a bundle, each with a kit that holds the role."""

    first: ClosedBundle
    second: ClosedBundle


def make_version(folder: Path, key: Key, version: str, sequence: int) -> ClosedBundle:
    target = replace(HOST_TARGET, python=PYTHON)
    extra = dict(render_fleet(Subject(name="demo", version=version, target=target, models=())))
    files = closed_files("six", extra=extra, target=target, version=version)
    bundle = make_closed_bundle(folder, key, files=files, target=target, version=version, sequence=sequence)
    carried = {name: data for name in CARRIED if isinstance(data := files.get(f"bootstrap/{name}"), bytes)}
    digest = write_kit(bundle.kit, bundle.manifest, carried, key.allowed_signers.read_text())
    return replace(bundle, kit_digest=digest)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("fleet")
    key = make_key(folder / "key", seed=b"F" * 32)
    return Bundles(first=make_version(folder, key, "1.0.0", 1), second=make_version(folder, key, "2.0.0", 2))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with make_fleet(NAMES) as made:
        yield made


def roll(fleet: Fleet, bundle: ClosedBundle, inventory: str, *words: str) -> Played:
    fixed = ["-e", f"sealift_bundle={bundle.tar}", "-e", "sealift_health_retries=1", "-e", "sealift_health_delay=1"]
    return fleet.play(bundle.kit / "ansible/fleet.yml", inventory, *fixed, *words)


def live(host: FleetHost) -> str | None:
    current = host.path(PREFIX) / "current"
    return current.readlink().name if current.is_symlink() else None


def changes(played: Played) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in played.counts.items()}


SITE: Final = """
good sealift_site=seoul
full sealift_site=busan
python sealift_site=busan
killed sealift_site=seoul
tampered sealift_source=present sealift_remote_bundle=/media/demo.bundle.tar
"""


def break_hosts(fleet: Fleet, bundle: ClosedBundle, wrong: Path) -> None:
    fleet.hosts["full"].mount("/opt", "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    fleet.hosts["python"].mount(str(wrong), "--bind", str(wrong))  # its RPATH is absolute
    for name in ("python3", "python3.11"):
        fleet.hosts["python"].path(f"/usr/bin/{name}").rename(fleet.hosts["python"].path(f"/media/{name}"))
    copy = fleet.hosts["tampered"].path("/media/demo.bundle.tar")
    shutil.copy(bundle.tar, copy)
    flip_bit(copy, bundle.tar.stat().st_size // 2)


def mend_hosts(fleet: Fleet, bundle: ClosedBundle) -> None:
    fleet.hosts["full"].unmount("/opt")
    for name in ("python3", "python3.11"):
        fleet.hosts["python"].path(f"/media/{name}").rename(fleet.hosts["python"].path(f"/usr/bin/{name}"))
    shutil.copy(bundle.tar, fleet.hosts["tampered"].path("/media/demo.bundle.tar"))


def test_a_fleet(fleet: Fleet, bundles: Bundles) -> None:
    first, second, hosts = bundles.first, bundles.second, fleet.hosts
    before, after = first.manifest.version, second.manifest.version
    wrong = other_python()
    assert wrong is not None, "the fleet tests need a second Python, 3.12 or 3.13, as pyenv makes it"
    break_hosts(fleet, first, wrong)

    # One host is good, and becomes live; the others say why not, and nothing on them is live.
    interpreter = f"ansible_python_interpreter={wrong}/bin/python3 sealift_python={wrong}/bin/python3"
    with Killer(hosts["killed"], PREFIX) as killer:
        inventory = SITE.replace("python ", f"python {interpreter} ")
        played = roll(fleet, first, inventory, "-e", "sealift_max_failures=4", "-e", "sealift_serial=2")
    assert played.code == 2, played.output
    assert killer.killed
    assert {name: live(host) for name, host in hosts.items()} == dict.fromkeys(NAMES) | {"good": live(hosts["good"])}
    assert (live(hosts["good"]) or "").startswith(f"{before}-")
    reasons = played.reasons()
    assert reasons.keys() == set(NAMES) - {"good"}
    unfit = "preflight: error: this host does not fit the bundle: 1 problem:\n  "
    assert reasons["full"].startswith(f"{unfit}disk space: found 7.")
    assert reasons["python"].startswith(f"{unfit}python: found none, needed CPython {PYTHON} on ")
    assert "\nhint: copy the bundle again" in reasons["tampered"]
    assert reasons["tampered"].startswith("install and flip: error: /media/demo.bundle.tar: 1 problem:")
    assert reasons["killed"].endswith("Killed")
    assert not hosts["full"].path("/opt/demo.fleet/bundle").exists(), "preflight comes before anything is carried"
    assert "Fetch it from that host" in played.output

    # Mended, they follow; the good one is left as it is, and the one that was killed goes on where it was.
    mend_hosts(fleet, first)
    with fleet.serve(first.tar.parent) as address:
        pulling = SITE.replace("full ", f"full sealift_source=pull sealift_url={address}/{first.tar.name} ")
        played = roll(fleet, first, pulling, "-e", "sealift_serial=100%")
    assert played.code == 0, played.output
    assert {live(host) for host in hosts.values()} == {live(hosts["good"])}
    assert changes(played)["good"] == 0
    assert all(count >= 1 for host, count in changes(played).items() if host != "good")

    # Once more changes nothing; --check tells of an upgrade and makes none.
    assert changes(roll(fleet, first, SITE)) == dict.fromkeys(NAMES, 0)
    played = roll(fleet, second, SITE, "--check")
    assert played.code == 0, played.output
    assert changes(played) == dict.fromkeys(NAMES, 1)
    assert f"would become live instead of {live(hosts['good'])}" in played.output
    assert {live(host) for host in hosts.values()} == {live(hosts["good"])}

    # An upgrade that a host's own check refuses is taken back there, and goes no further; one host isn't even there.
    strict = SITE.replace("killed ", "killed ansible_port=1 ")
    strict = strict.replace("good ", 'good sealift_verify_options=\'["--signatures", "2"]\' ')
    was = live(hosts["good"])
    played = roll(
        fleet, second, strict, "-e", "sealift_source=copy", "-e", "sealift_serial=1", "-e", "sealift_max_failures=1"
    )
    assert played.code != 0, played.output
    assert "2 failed (killed, good), 1 may; no further host is touched. good: verify what is live: " in played.output
    assert f"(rolled back to {was})" in played.output
    assert {name: live(host) for name, host in hosts.items()} == dict.fromkeys(NAMES, was)
    kept = [path.name for path in (hosts["good"].path(PREFIX) / "releases").iterdir()]
    assert any(name.startswith(f"{after}-") for name in kept), "it stays there to be looked at"
