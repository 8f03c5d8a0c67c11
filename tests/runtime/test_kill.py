"""SIGKILL at every marked step of an upgrade, and errors of the devices there: nothing is lost but time."""

import json
from pathlib import Path

import pytest

from manifests.digests import CHUNK_SIZE
from manifests.tarlayout import tar_layout
from runtime.steps import ENVIRONMENT_STEPS, INSTALL_STEPS
from tests.factories import Key
from tests.factories_closed import (
    BIG_PATH,
    BIG_SIZE,
    ClosedBundle,
    Host,
    copy_of,
    flip_bit,
    leftovers,
    make_closed_bundle,
)
from tests.factories_kill import Installer, clone, essence, stored_paths

AFTER_RECEIPT = ("receipt written", "logged", "state written")
COUNTS = {"piece written": 2, "blob checked": 2, "blob stored": 2, "file linked": 5}


@pytest.fixture
def installer(host: Host) -> Installer:
    """Installs, and stops where it is told to."""
    return Installer(host=host)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, installed: Path, second: ClosedBundle
) -> dict[str, tuple[str, str]]:
    """What the upgrade from the first bundle to the second makes when nobody stops it."""
    from tests.factories_closed import make_host  # noqa: PLC0415 # the host of this fixture alone

    folder = tmp_path_factory.mktemp("undisturbed")
    prefix = clone(installed, folder / "prefix")
    done = Installer(host=make_host(folder / "home")).run(second, prefix)
    assert done.status == 0, done.words
    return essence(prefix)


def state_of(host: Host, bundle: ClosedBundle, prefix: Path) -> dict[str, str]:
    done = host.runtime(bundle.pyz, "status", "--prefix", prefix, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)["releases"]
    return found


def test_every_step_is_marked(tmp_path: Path, installed: Path, second: ClosedBundle, installer: Installer) -> None:
    """A step that no install reaches would make its test pass for nothing."""
    driver = installer.command(second, clone(installed, tmp_path / "prefix"))
    text = (installer.host.home / "driver.py").read_text()
    (installer.host.home / "driver.py").write_text(
        text.replace("    global left\n", '    global left\n    sys.stderr.write(f"{name}\\n")\n')
    )
    done = installer.host.run(*driver)
    assert done.returncode == 0, done.stderr
    seen = list(dict.fromkeys(done.stderr.splitlines()))
    assert set(seen) == set(INSTALL_STEPS)
    for beside in (True, False):  # the environment is made in a thread of its own
        mine = [step for step in seen if (step in ENVIRONMENT_STEPS) is beside]
        assert mine == [step for step in INSTALL_STEPS if (step in ENVIRONMENT_STEPS) is beside]
    order = {step: seen.index(step) for step in seen}
    assert order["wheels linked"] < order["venv made"] < order["smoke tested"] < order["settings written"]


@pytest.mark.parametrize("step", INSTALL_STEPS)
def test_a_kill_at_every_step(
    *,
    tmp_path: Path,
    installed: Path,
    first: ClosedBundle,
    second: ClosedBundle,
    installer: Installer,
    undisturbed: dict[str, tuple[str, str]],
    step: str,
) -> None:
    prefix = clone(installed, tmp_path / "prefix")
    old = (prefix / "current").readlink().name
    assert installer.run(second, prefix, step, COUNTS.get(step, 1)).status == -9

    live = (prefix / "current").readlink().name
    assert (live != old) == (step == "live")
    answer = installer.host.run(prefix / "current/venv/bin/python", "-I", "-c", "import six; print(six.__name__)")
    assert answer.stdout == "six\n", answer.stderr
    states = state_of(installer.host, first, prefix)
    new = [state for name, state in states.items() if name != old]
    assert states[old] == ("installed" if step == "live" else "live")
    expected = ["live"] if step == "live" else ["installed"] if step in AFTER_RECEIPT else ["unfinished"]
    assert new in ([expected] if expected != ["unfinished"] else [[], expected])

    stored = stored_paths(second, prefix)
    again = installer.run(second, prefix)
    assert again.status == 0, again.words
    assert essence(prefix) == undisturbed
    assert stored.isdisjoint(again.read), "what was verified is not read from the medium again"


def test_a_chunk_that_was_written_is_not_read_again(
    tmp_path: Path, chunked: ClosedBundle, installer: Installer
) -> None:
    prefix = tmp_path / "prefix"
    pieces = sum(1 for entry in chunked.manifest.files if not entry.chunks)
    before = [entry.path for entry in chunked.manifest.files].index(BIG_PATH)
    assert installer.run(chunked, prefix, "piece written", before + 1).status == -9
    assert before < pieces, "small files come after it too"
    again = installer.run(chunked, prefix)
    assert again.status == 0, again.words
    assert again.read.get(BIG_PATH, 0) < BIG_SIZE


def test_good_chunks_stay_when_one_is_damaged(tmp_path: Path, chunked: ClosedBundle, installer: Installer) -> None:
    prefix, tar = tmp_path / "prefix", copy_of(chunked.tar, tmp_path / "copy")
    layout = tar_layout(chunked.manifest.encode(), chunked.manifest.files)
    start = next(member.offset for member in layout.members if member.entry.path == BIG_PATH)
    flip_bit(tar, start + CHUNK_SIZE + 5)
    bad = ClosedBundle(tar=tar, kit=chunked.kit, kit_digest=chunked.kit_digest, manifest=chunked.manifest)
    done = installer.run(bad, prefix)
    assert done.status == 5
    assert f"{BIG_PATH} chunk 1: expected sha256 " in done.words
    entry = next(entry for entry in chunked.manifest.files if entry.path == BIG_PATH)
    assert leftovers(prefix) == [f"store/sha256/{entry.store_key[:2]}/{entry.store_key}.partial"]
    again = installer.run(chunked, prefix)
    assert again.status == 0, again.words
    assert again.read == {BIG_PATH: BIG_SIZE - CHUNK_SIZE}, "the one damaged chunk and nothing else"


def test_rollback_after_a_kill_before_the_flip(
    tmp_path: Path, installed: Path, second: ClosedBundle, closed_key: Key, installer: Installer
) -> None:
    prefix, host = clone(installed, tmp_path / "prefix"), installer.host
    oldest = (prefix / "current").readlink().name
    middle = installer.run(second, prefix).release
    third = make_closed_bundle(tmp_path / "third", closed_key, "six", version="3.0.0", sequence=1767323199)
    assert installer.run(third, prefix, "state written").status == -9
    assert (prefix / "current").readlink().name == middle
    back = host.runtime(second.pyz, "rollback", "--prefix", prefix)
    assert (back.returncode, back.stdout) == (0, f"{oldest} is live again\n"), back.stderr
    # The same, of the rollback itself: its state is written, the flip never came.
    (prefix / "current").unlink()
    (prefix / "current").symlink_to(f"releases/{middle}")
    back = host.runtime(second.pyz, "rollback", "--prefix", prefix)
    assert (back.returncode, back.stdout) == (0, f"{oldest} is live again\n"), back.stderr
    back = host.runtime(second.pyz, "rollback", "--prefix", prefix)
    assert back.stdout == f"{middle} is live again\n", "and there is a way forth again"


@pytest.mark.parametrize(
    ("step", "fault", "words"),
    [
        ("medium", "EIO", "the device reports a read or write error"),
        ("piece written", "EIO", "the device reports a read or write error"),
        ("file linked", "ENOSPC", "no space left on the device"),
        ("settings written", "EACCES", "permission denied"),
        ("synced", "EROFS", "the file system is read-only"),
    ],
)
def test_an_error_of_the_system_leaves_nothing(
    *, tmp_path: Path, installed: Path, second: ClosedBundle, installer: Installer, step: str, fault: str, words: str
) -> None:
    prefix = clone(installed, tmp_path / "prefix")
    before = leftovers(prefix)
    done = installer.run(second, prefix, step, 2 if step == "medium" else 1, fault)
    assert done.status == 7, done.words
    assert done.words.startswith("error: can't ")
    assert words in done.words
    assert leftovers(prefix) == before
    assert list((prefix / "var/run").iterdir()) == []
