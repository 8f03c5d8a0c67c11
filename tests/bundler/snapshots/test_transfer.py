"""Downloads against a real server on the loopback: every fault, and a real SIGKILL."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bundler.snapshots.download import Download
from bundler.snapshots.partial import PartialFile
from bundler.snapshots.patience import Limits, retry_after
from bundler.snapshots.transfer import fetch_all, open_session
from bundler.store import Store
from manifests.digests import digest_bytes
from manifests.errors import IntegrityError, SealiftError, SourceError
from tests.factories_hub import SECRET_QUERY, Fault, LoopbackHub, blob_id_of, loopback_hub

REPO = "org/model"
COMMIT = "a" * 40
SEGMENT = 64 * 1024
LIMITS = Limits(segment=SEGMENT, attempts=3, progress=16 * 1024, timeout=2)
BIG = bytes(itertools.islice(itertools.cycle(range(251)), 5 * SEGMENT + 100))
SMALL = b'{"small": true}'
SECRET = "Bearer hub-secret"  # noqa: S105 - a loopback's


@dataclass
class PatientClock:
    """Real time that goes on, but waits are only written down."""

    waits: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return 1_000_000_000.0

    def wait(self, seconds: float, stop: threading.Event) -> None:
        assert not stop.is_set()
        self.waits.append(seconds)


@dataclass
class Fetched:
    """A download tried once, with all it said."""

    store: Store
    clock: PatientClock = field(default_factory=PatientClock)
    said: list[str] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    limits: Limits = LIMITS

    def run(self, hub: LoopbackHub, *files: str, **changes: str) -> None:
        session = open_session(
            self.store,
            hub.endpoint,
            authorization=SECRET,
            limits=self.limits,
            clock=self.clock,
            report=self.said.append,
            progress=self.moved.append,
        )
        fetch_all([download(hub, name, **changes) for name in files], session)

    def has(self, data: bytes) -> bool:
        sha256 = hashlib.sha256(data).hexdigest()
        return sha256 in self.store and self.store.check(sha256) == digest_bytes(data)


def download(hub: LoopbackHub, name: str, *, sha256: str = "") -> Download:
    data = hub.repos[REPO][COMMIT][name]
    is_lfs = name.endswith((".safetensors", ".bin"))
    return Download(
        url=f"{hub.endpoint}/{REPO}/resolve/{COMMIT}/{name}",
        name=name,
        size=len(data),
        sha256=sha256 or (hashlib.sha256(data).hexdigest() if is_lfs else ""),
        blob_id=blob_id_of(data),
        hint="ask",
    )


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        hub.add(REPO, {"big.safetensors": BIG, "small.json": SMALL, "empty.txt": b"", "other.json": b"[]"})
        yield hub


@pytest.fixture
def fetched(tmp_path: Path) -> Fetched:
    return Fetched(store=Store(tmp_path / "cache"))


def leftovers(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "partial").iterdir() if path.name != "lock")


def failure(fetched: Fetched, hub: LoopbackHub, name: str, kind: type[SealiftError]) -> SealiftError:
    with pytest.raises(kind) as caught:
        fetched.run(hub, name)
    assert "secret" not in f"{caught.value.render()}{fetched.said}"
    return caught.value


def test_everything_comes_once_in_ranges(hub: LoopbackHub, fetched: Fetched) -> None:
    fetched.run(hub, "big.safetensors", "small.json", "empty.txt", "other.json")
    assert all(fetched.has(data) for data in (BIG, SMALL, b"", b"[]"))
    ranges = sorted(item.range for item in hub.bodies("big"))
    firsts = range(0, len(BIG), SEGMENT)
    assert ranges == sorted(f"bytes={first}-{min(first + SEGMENT, len(BIG)) - 1}" for first in firsts)
    assert [item.range for item in hub.bodies("json")] == ["", ""]
    assert hub.bodies("empty") == []
    assert sum(fetched.moved) == hub.sent() == len(BIG) + len(SMALL) + 2
    assert (leftovers(fetched.store), fetched.clock.waits, fetched.said) == ([], [], [])
    hub.asked.clear()
    fetched.run(hub, "big.safetensors", "small.json", "empty.txt")
    assert hub.asked == []


def test_the_secret_stays_at_its_host_and_the_hub_is_asked_once(hub: LoopbackHub, fetched: Fetched) -> None:
    fetched.run(hub, "big.safetensors")
    assert {item.authorization for item in hub.asked if item.server == "content"} == {""}
    assert [item.authorization for item in hub.asked if item.server == "hub"] == [SECRET]


def test_same_content_under_two_names_is_fetched_once(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.repos[REPO][COMMIT]["twin.json"] = SMALL
    fetched.run(hub, "small.json", "twin.json")
    assert len(hub.bodies()) == 1


def test_cuts_go_on_where_they_were(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"big.safetensors": [Fault(cut_after=30_000, times=9)], "small.json": [Fault(cut_after=3)]}
    fetched.run(hub, "big.safetensors", "small.json")
    assert fetched.has(BIG)
    assert fetched.has(SMALL)
    assert hub.sent() == len(BIG) + len(SMALL)  # not one byte twice
    (again,) = [item for item in hub.bodies("small") if item.range]
    assert (again.range, again.if_range) == (f"bytes=3-{len(SMALL) - 1}", f'"{blob_id_of(SMALL)}"')
    assert any("big.safetensors" in line and "early; trying again in 1 s" in line for line in fetched.said)


def test_attempts_are_bounded_and_what_came_stays(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"small.json": [Fault(cut_after=2), Fault(cut_after=0, times=99)]}
    error = failure(fetched, hub, "small.json", SourceError)
    host = hub.endpoint.removeprefix("http://")
    assert error.message == f"small.json: can't be fetched from {host}: the body ended 13 bytes early; 3 attempts"
    assert error.hint == "run the same command again: what is there stays"
    assert fetched.clock.waits == [1.0, 2.0]
    assert len(hub.bodies("small")) == 3
    hub.faults = {}
    hub.asked.clear()
    fetched.run(hub, "small.json")
    assert hub.sent() == len(SMALL) - 2
    assert fetched.said[-1] == "small.json: going on at 2 B of 15 B"


def test_a_stall_is_cut_and_tried_again(hub: LoopbackHub, fetched: Fetched) -> None:
    fetched.limits = Limits(segment=SEGMENT, attempts=3, timeout=0.3)
    hub.faults = {"big.safetensors": [Fault(stall_after=1000)]}
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    assert any("nothing came for too long" in line for line in fetched.said)


@pytest.mark.parametrize("name", ["big.safetensors", "small.json"])
def test_a_wrong_body_is_discarded_and_named(hub: LoopbackHub, fetched: Fetched, name: str) -> None:
    right = hub.repos[REPO][COMMIT][name]
    wrong = right[:-1] + b"?"
    hub.faults = {name: [Fault(body=wrong, times=99)]}
    error = failure(fetched, hub, name, IntegrityError)
    digests = [hashlib.sha256(data).hexdigest() for data in (right, wrong)]
    expected = f"sha256 {digests[0]}, got {digests[1]}"
    if name == "small.json":
        expected = f"git blob {blob_id_of(right)}, got {blob_id_of(wrong)}"
    assert error.message == f"{name}: expected {expected}; it was discarded"
    assert error.exit_code == 5
    assert leftovers(fetched.store) == []
    assert not fetched.has(wrong)
    assert sum(fetched.moved) == 0
    hub.faults = {}
    fetched.run(hub, name)
    assert fetched.has(right)


def test_all_wrong_bodies_are_named_and_the_rest_is_kept(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {name: [Fault(body=b"?" * size)] for name, size in (("small.json", 15), ("other.json", 2))}
    with pytest.raises(IntegrityError) as caught:
        fetched.run(hub, "small.json", "other.json", "big.safetensors")
    assert caught.value.message.count("it was discarded") == 2
    assert fetched.has(BIG)


def test_damage_in_the_part_from_earlier_is_fetched_anew(hub: LoopbackHub, fetched: Fetched) -> None:
    item = download(hub, "big.safetensors")
    with PartialFile(fetched.store.root / "partial" / item.key, len(BIG), SEGMENT) as partial:
        partial.write(0, b"?" * 1000, 0)
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    assert fetched.said[-1] == "big.safetensors: the part from earlier doesn't fit; fetched anew"
    assert sum(fetched.moved) == len(BIG)


@pytest.mark.parametrize(("length", "words"), [(14, "it announces 14"), (16, "it announces 16")])
def test_a_wrong_length_is_refused(hub: LoopbackHub, fetched: Fetched, length: int, words: str) -> None:
    hub.faults = {"small.json": [Fault(length=length, times=99)]}
    assert f"expected 15 bytes, {words}; 3 attempts" in failure(fetched, hub, "small.json", SourceError).message
    hub.faults = {"small.json": [Fault(length=length)]}
    fetched.run(hub, "small.json")
    assert fetched.has(SMALL)


def test_retry_after_is_obeyed(hub: LoopbackHub, fetched: Fetched) -> None:
    date = "Sun, 09 Sep 2001 01:47:10 GMT"  # 30 seconds after the clock's time
    hub.faults = {
        "big.safetensors": [
            Fault(status=429, headers={"Retry-After": "7"}),
            Fault(status=503, headers={"Retry-After": date}),
        ],
        "small.json": [Fault(status=502)],
    }
    fetched.run(hub, "big.safetensors")
    assert fetched.clock.waits == [7.0, 30.0]
    fetched.run(hub, "small.json")
    assert fetched.clock.waits == [7.0, 30.0, 1.0]
    assert "status 429 Too Many Requests; trying again in 7 s" in fetched.said[0]


def test_a_long_retry_after_is_told_instead_of_waited(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"small.json": [Fault(status=429, headers={"Retry-After": "3600"})]}
    error = failure(fetched, hub, "small.json", SourceError)
    assert "asks to wait 3600 s: status 429 Too Many Requests" in error.message
    assert fetched.clock.waits == []


def test_delays_grow_to_a_cap(hub: LoopbackHub, fetched: Fetched) -> None:
    fetched.limits = Limits(attempts=6, longest_delay=5)
    hub.faults = {"small.json": [Fault(status=500, times=99)]}
    failure(fetched, hub, "small.json", SourceError)
    assert fetched.clock.waits == [1, 2, 4, 5, 5]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final_and_has_the_hint(hub: LoopbackHub, fetched: Fetched, status: int) -> None:
    fault = Fault(status=status, headers={"X-Error-Code": "GatedRepo"}, at="hub", times=99)
    hub.faults = {"big.safetensors": [fault]}
    error = failure(fetched, hub, "big.safetensors", SourceError)
    assert "big.safetensors: 127.0.0.1" in error.message
    assert f"refuses: status {status} " in error.message
    assert error.message.endswith(", GatedRepo")
    assert (error.hint, len(hub.asked)) == ("ask", 1)


def test_a_server_without_ranges_is_read_in_one_go(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {
        "big.safetensors": [
            Fault(no_ranges=True, times=2),
            Fault(no_ranges=True, cut_after=200_000),
            Fault(no_ranges=True, times=99),
        ]
    }
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    assert any("sends all of it instead of a part; begun anew" in line for line in fetched.said)
    assert sum(fetched.moved) == len(BIG)


def test_a_server_without_ranges_is_not_asked_forever(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"big.safetensors": [Fault(no_ranges=True, cut_after=200_000, times=99)]}
    assert failure(fetched, hub, "big.safetensors", SourceError).message.endswith("early; 3 attempts")


def test_two_versions_are_never_put_together(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"big.safetensors": [Fault(cut_after=50_000, body=b"?" * len(BIG), etag="older")]}
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    assert any("begun anew" in line for line in fetched.said)


def test_another_etag_in_a_part_begins_anew(hub: LoopbackHub, fetched: Fetched) -> None:
    fetched.limits = Limits(segment=SEGMENT, connections=1)
    older = Fault(cut_after=50_000, body=b"?" * len(BIG), etag="W/older")
    hub.faults = {"big.safetensors": [older]}
    item = download(hub, "big.safetensors")
    with PartialFile(fetched.store.root / "partial" / item.key, len(BIG), SEGMENT) as partial:
        partial.note_etag("W/older")  # a weak one can't go into If-Range
        partial.write(0, b"?" * 1000, 0)
    hub.faults = {}
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    assert hub.bodies("big")[0].if_range == ""
    assert any("it is another version by now; begun anew" in line for line in fetched.said)
    assert "big.safetensors: the part from earlier doesn't fit; fetched anew" not in fetched.said


@pytest.mark.parametrize("text", ["bytes 0-9/10", "bytes 1-65536/327780", "nonsense"])
def test_content_range_is_checked(hub: LoopbackHub, fetched: Fetched, text: str) -> None:
    hub.faults = {"big.safetensors": [Fault(content_range=text, times=99)]}
    message = failure(fetched, hub, "big.safetensors", SourceError).message
    assert f"expected bytes 0-65535/327780, it sends {text}; 3 attempts" in message


def test_an_expired_address_is_asked_for_again(hub: LoopbackHub, fetched: Fetched) -> None:
    fetched.limits = Limits(segment=SEGMENT, connections=1)
    hub.faults = {"big.safetensors": [Fault(cut_after=40_000), Fault(status=403)]}
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    assert len([item for item in hub.asked if item.server == "hub"]) == 2
    assert hub.sent() == len(BIG)


@pytest.mark.parametrize(
    ("location", "words"),
    [("file:///etc/passwd", "'file:///etc/passwd' is not an http or https address"), ("/loop", "redirects more than")],
)
def test_redirects_are_followed_to_http_only(hub: LoopbackHub, fetched: Fetched, location: str, words: str) -> None:
    where = f"{REPO}/resolve/{COMMIT}/small.json"
    headers = {"Location": f"/{where}" if location == "/loop" else location}
    hub.faults = {"small.json": [Fault(status=302, headers=headers, at="hub", times=99)]}
    assert words in failure(fetched, hub, "small.json", SourceError).message


def test_nobody_there(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.endpoint = "http://127.0.0.1:1"
    message = failure(fetched, hub, "small.json", SourceError).message
    assert message == "small.json: can't be fetched from 127.0.0.1:1: connection refused; 3 attempts"


def test_the_proxy_of_the_environment_is_used(
    hub: LoopbackHub, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://user:proxy-secret@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    assert "connection refused" in failure(fetched, hub, "small.json", SourceError).message
    assert hub.asked == []


def test_no_space_is_said_before_anything_comes(hub: LoopbackHub, fetched: Fetched) -> None:
    item = download(hub, "big.safetensors")
    huge = Download(url=item.url, name="huge", size=1 << 60, sha256=item.sha256)
    with pytest.raises(SealiftError) as caught:
        fetch_all([huge], open_session(fetched.store, hub.endpoint))
    assert "are still to be fetched" in caught.value.message
    assert caught.value.exit_code == 7
    assert hub.asked == []


def test_retry_after_forms() -> None:
    clock = PatientClock()
    assert retry_after("12", clock) == 12
    assert retry_after("Sun, 09 Sep 2001 01:46:50 GMT", clock) == 10
    assert retry_after("Sun, 09 Sep 2001 01:46:30 GMT", clock) == 0
    assert [retry_after(text, clock) for text in ("", "soon", "-1")] == [None, None, None]


KILLED = """
import sys
from pathlib import Path
from bundler.snapshots.download import Download
from bundler.snapshots.patience import Limits
from bundler.store import Store
from bundler.snapshots.transfer import fetch_all, open_session
url, size, sha256, cache = sys.argv[1:]
limits = Limits(segment=65536, connections=3)
item = Download(url=url, name="big", size=int(size), sha256=sha256)
fetch_all([item], open_session(Store(Path(cache)), url, limits=limits))
"""


def test_sigkill_loses_nothing_that_came(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"big.safetensors": [Fault(times=2), Fault(stall_after=20_000, times=9)]}
    item = download(hub, "big.safetensors")
    path = fetched.store.root / "partial" / item.key
    command = [sys.executable, "-c", KILLED, item.url, str(item.size), item.sha256, str(fetched.store.root)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], start_new_session=True) as process:
        expected = 2 * SEGMENT + 3 * 20_000  # two segments, and three workers at a stalled one
        deadline = time.monotonic() + 60
        while done_in(path) < expected:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert item.sha256 not in fetched.store
    hub.release.set()
    hub.faults = {}
    before = hub.asked[:]
    fetched.run(hub, "big.safetensors")
    assert fetched.has(BIG)
    after = [one for one in hub.bodies("big") if one not in before and one.sent != 20_000]
    assert sum(one.sent for one in after) == len(BIG) - expected
    assert fetched.said[0] == "big.safetensors: going on at 191.1 kB of 327.8 kB"
    assert sum(fetched.moved) == len(BIG)
    assert leftovers(fetched.store) == []


def test_an_interrupt_waits_for_no_stalled_server(hub: LoopbackHub, fetched: Fetched) -> None:
    hub.faults = {"big.safetensors": [Fault(stall_after=1000, times=9)]}
    item = download(hub, "big.safetensors")
    path = fetched.store.root / "partial" / item.key
    command = [sys.executable, "-c", KILLED, item.url, str(item.size), item.sha256, str(fetched.store.root)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=subprocess.PIPE) as process:
        assert hub.reached.wait(60)
        while done_in(path) < 3000:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=25)  # the server stalls for 30 seconds, and so does the client
    assert not hub.release.is_set()
    assert errors.strip().endswith(b"KeyboardInterrupt")
    assert done_in(path) == 3000


def done_in(path: Path) -> int:
    """Return how many bytes another process has counted so far."""
    state = path.with_name(f"{path.name}.state")
    data = state.read_bytes()[1024:] if state.exists() else b""
    return sum(int.from_bytes(data[start : start + 8], "little") for start in range(0, len(data), 8))


def test_the_content_servers_query_is_in_no_message(hub: LoopbackHub, fetched: Fetched) -> None:
    fault = Fault(status=400, times=99)
    hub.faults = {"big.safetensors": [fault]}
    error = failure(fetched, hub, "big.safetensors", SourceError)
    assert "status 400" in error.message
    assert SECRET_QUERY not in error.message
