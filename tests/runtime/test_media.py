"""Volumes, the pipe and deltas on the closed side: the real runtime.pyz, as an operator runs it."""

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.digests import CHUNK_SIZE
from manifests.manifest import manifest_digest
from manifests.tarlayout import tar_layout
from tests.factories import Content, tree_of, unpack_bundle
from tests.factories_closed import BIG_PATH, ClosedBundle, Host, copy_of, flip_bit
from tests.factories_kill import clone
from tests.factories_media import cut, delta_bytes, delta_text, needed

MIB = 1024 * 1024


@contextlib.contextmanager
def started(
    host: Host, bundle: ClosedBundle, *words: str | Path, stdin: int = subprocess.DEVNULL
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a runtime command as the host would, with pipes; it never outlives the block."""
    with subprocess.Popen(
        host.command(*host.runtime_words(bundle.pyz, *words)),
        env=host.environment,
        cwd=host.home,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def piped(host: Host, bundle: ClosedBundle, data: bytes, *words: str | Path) -> tuple[int, str]:
    """Run a command with ``data`` on its standard input; return exit code and all that it said."""
    with started(host, bundle, *words, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(data, timeout=120)
    return process.returncode, (out + err).decode()


def to_prefix(bundle: ClosedBundle, prefix: Path) -> tuple[str | Path, ...]:
    return ("--prefix", prefix, "--trust", bundle.trust)


def delta_to(bundle: ClosedBundle, base: ClosedBundle, folder: Path) -> Path:
    """Write the delta from one closed bundle to another."""
    files: dict[str, Content] = dict(tree_of(unpack_bundle(bundle.tar, folder / "unpacked")))
    carried = needed(bundle.manifest, base.manifest)
    slot = files["manifest.json.sig"]
    assert isinstance(slot, bytes)
    path = folder / "delta.bundle.tar"
    path.write_bytes(delta_bytes(bundle.manifest, files, slot, delta_text(base.manifest, carried), carried))
    return path


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory, first: ClosedBundle, second: ClosedBundle) -> Path:
    """The delta from the first bundle to the second; never write to it."""
    return delta_to(second, first, tmp_path_factory.mktemp("delta"))


PLACES = ("receipt.json", "/RECORD", "/direct_url.json", "/uv_cache.json")
"""What uv and the receipt write of the prefix's own path and of times."""


def release_tree(prefix: Path) -> dict[str, bytes]:
    """Return the live release, without what says where and when it was made."""
    release = (prefix / "current").resolve()
    return {
        name: data.replace(str(prefix).encode(), b"PREFIX")
        for name, data in tree_of(release).items()
        if not name.endswith(PLACES)
    }


def test_a_delta_installs_what_the_full_bundle_does(
    tmp_path: Path, host: Host, installed: Path, second: ClosedBundle, delta: Path
) -> None:
    one, two = clone(installed, tmp_path / "one"), clone(installed, tmp_path / "two")
    full = host.runtime(second.pyz, "install", second.tar, *to_prefix(second, one))
    assert full.returncode == 0, full.stderr
    done = host.runtime(second.pyz, "install", delta, *to_prefix(second, two))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2.0.0-")
    assert (one / "current").readlink() == (two / "current").readlink()
    assert release_tree(one) == release_tree(two)
    assert "delta.json" not in release_tree(two)
    verified = host.runtime(second.pyz, "verify", *to_prefix(second, two))
    assert verified.returncode == 0, verified.stdout
    again = host.runtime(second.pyz, "install", delta, *to_prefix(second, two))
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)


def test_a_delta_without_its_base(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle, delta: Path
) -> None:
    done = host.runtime(second.pyz, "install", delta, *to_prefix(second, tmp_path / "prefix"))
    base = f"version 1.0.0, manifest digest {manifest_digest(first.manifest.encode())}"
    assert done.returncode == 5
    assert f"error: {delta}: is a delta to {base}, which is not whole here: " in done.stderr
    assert "wheels/six-1.17.0-py2.py3-none-any.whl: neither in the delta nor in the store" in done.stderr
    assert done.stderr.endswith(f"hint: install its base first: {base}\n")
    assert not (tmp_path / "prefix").exists()
    looked = host.runtime(second.pyz, "preflight", delta, "--prefix", tmp_path / "prefix")
    assert looked.returncode == 5
    assert f"hint: install its base first: {base}\n" in looked.stderr


def test_a_base_that_is_damaged(
    tmp_path: Path, host: Host, installed: Path, first: ClosedBundle, delta: Path, *, second: ClosedBundle
) -> None:
    prefix = clone(installed, tmp_path / "prefix")
    entry = next(entry for entry in first.manifest.files if "/six-" in entry.path)
    blob = prefix / "store/sha256" / entry.store_key[:2] / entry.store_key
    blob.chmod(0o644)
    flip_bit(blob, 100)
    live = (prefix / "current").readlink()
    done = host.runtime(second.pyz, "install", delta, *to_prefix(second, prefix))
    assert done.returncode == 5
    assert f"{entry.path}: damaged in the store: expected sha256 {entry.sha256}, got " in done.stderr
    assert "hint: install its base first: version 1.0.0, manifest digest " in done.stderr
    assert (prefix / "current").readlink() == live
    assert [path.name for path in (prefix / "releases").iterdir()] == [live.name]
    assert blob.exists(), "a release holds it; runtime repair heals it"


def test_preflight_of_a_delta_with_its_base(host: Host, installed: Path, second: ClosedBundle, delta: Path) -> None:
    done = host.runtime(second.pyz, "preflight", delta, "--prefix", installed)
    assert done.returncode == 0, done.stderr


def test_verifying_a_delta_says_what_it_left_out(
    host: Host, first: ClosedBundle, second: ClosedBundle, delta: Path
) -> None:
    carried = needed(second.manifest, first.manifest)
    left_out = len(second.manifest.files) - len(carried)
    done = host.runtime(second.pyz, "verify", delta, "--trust", second.trust)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"good: {second.manifest.stem}, {len(carried)} files, ")
    assert re.fullmatch(rf"a delta: {left_out} files, .*, were not looked at, since it doesn't carry them", lines[1])
    digest = manifest_digest(first.manifest.encode())
    assert lines[2] == f"they must be installed already, by version 1.0.0, manifest digest {digest}"
    document = json.loads(host.runtime(second.pyz, "verify", delta, "--trust", second.trust, "--json").stdout)
    assert (document["files"], document["delta"]["base"], document["delta"]["left_out"]) == (
        len(carried),
        digest,
        left_out,
    )


@pytest.mark.parametrize("form", ["volumes", "folder", "pipe"])
def test_other_forms_of_a_delta(
    tmp_path: Path, host: Host, installed: Path, second: ClosedBundle, delta: Path, *, form: str
) -> None:
    prefix = clone(installed, tmp_path / "prefix")
    if form == "pipe":
        code, said = piped(host, second, delta.read_bytes(), "install", "-", *to_prefix(second, prefix))
    else:
        path = unpack_bundle(delta, tmp_path / "f") if form == "folder" else cut(delta, 9 * MIB, tmp_path / "v")[0]
        done = host.runtime(second.pyz, "install", path, *to_prefix(second, prefix))
        code, said = done.returncode, done.stdout + done.stderr
    assert code == 0, said
    assert (prefix / "current").readlink().name.startswith("2.0.0-")


def test_volumes_from_two_folders(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    made = cut(chunked.tar, 15 * MIB, tmp_path / "a", tmp_path / "b")
    words = ("install", made[0], *to_prefix(chunked, tmp_path / "prefix"))
    alone = host.runtime(chunked.pyz, *words)
    assert alone.returncode == 5
    assert f"  {made[1].name}: missing, the bundle has {len(made)} volumes\n" in alone.stderr
    assert alone.stderr.endswith("hint: name the folders they are in: --volumes DIR\n")
    assert not (tmp_path / "prefix").exists()
    done = host.runtime(chunked.pyz, *words, "--volumes", tmp_path / "b")
    assert done.returncode == 0, done.stderr


def test_a_bad_volume_is_named_and_only_it_is_carried_again(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    made = cut(chunked.tar, 15 * MIB, tmp_path)
    flip_bit(made[3], 1000)
    done = host.runtime(chunked.pyz, "install", made[0], *to_prefix(chunked, tmp_path / "prefix"))
    assert done.returncode == 5
    assert f"{BIG_PATH} chunk 0: expected sha256 " in done.stderr
    hint = done.stderr.splitlines()[-1]
    assert hint.startswith("hint: only these are to be carried again: ")
    assert made[3].name in hint
    flip_bit(made[3], 1000)
    assert host.runtime(chunked.pyz, "install", made[0], *to_prefix(chunked, tmp_path / "prefix")).returncode == 0


def wait_for(process: "subprocess.Popen[bytes]", words: bytes, seconds: float = 60) -> bytes:
    """Read what a process says until ``words`` were said."""
    assert process.stderr is not None
    said, until = b"", time.monotonic() + seconds
    while words not in said:
        assert time.monotonic() < until, said
        data = os.read(process.stderr.fileno(), 4096)
        assert data, said
        said += data
    return said


def test_one_medium_after_the_other(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    """One drive: each volume is put in when it is asked for, the one before is taken out; nothing holds it."""
    made = cut(chunked.tar, 30 * MIB, tmp_path / "safe")
    drive = tmp_path / "drive"
    drive.mkdir()
    made[0].rename(drive / made[0].name)
    words = ("install", drive / made[0].name, *to_prefix(chunked, tmp_path / "prefix"), "--wait-volumes", "60")
    with started(host, chunked, *words) as process:
        for before, path in itertools.pairwise(made):
            wait_for(process, f"waiting for {path.name} in {drive}".encode())
            links = [link for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()]
            assert not [link for link in links if link.readlink().parent == drive]
            (drive / before.name).unlink()
            path.rename(drive / path.name)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [path.name for path in drive.iterdir()] == [made[-1].name]
    assert host.runtime(chunked.pyz, "verify", *to_prefix(chunked, tmp_path / "prefix")).returncode == 0


def test_waiting_has_an_end(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    made = cut(chunked.tar, 30 * MIB, tmp_path)
    made[1].unlink()
    words = ("install", made[0], *to_prefix(chunked, tmp_path / "prefix"), "--wait-volumes", "0")
    done = host.runtime(chunked.pyz, *words)
    assert done.returncode == 5
    assert done.stderr.endswith(
        f"error: {made[1].name}: missing, nobody brought it\n"
        "hint: run the same command again to go on; what was verified is kept\n"
    )
    assert not (tmp_path / "prefix/current").exists()


def test_an_interrupted_install_goes_on_at_the_volume_it_needs(
    tmp_path: Path, host: Host, chunked: ClosedBundle
) -> None:
    """What was verified is in the store, so after an interruption nobody is asked for its volumes again."""
    made = cut(chunked.tar, 6 * MIB, tmp_path / "safe")
    start = first_volume_of(chunked, BIG_PATH, 6 * MIB)
    assert start >= 3
    drive = tmp_path / "drive"
    drive.mkdir()
    for path in made[: start + 1]:
        (drive / path.name).write_bytes(path.read_bytes())
    words = ("install", drive / made[0].name, *to_prefix(chunked, tmp_path / "prefix"), "--wait-volumes", "60")
    with started(host, chunked, *words) as process:
        wait_for(process, f"waiting for {made[start + 1].name}".encode())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    for path in made[start - 1 :]:
        (drive / path.name).write_bytes(path.read_bytes())
    for path in made[1 : start - 1]:
        (drive / path.name).unlink()
    with started(host, chunked, *words) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, b"waiting for" in err) == (0, False), err
    assert b" is live" in out


def first_volume_of(bundle: ClosedBundle, path: str, size: int) -> int:
    """Return the number of the volume in which a file begins."""
    members = tar_layout(bundle.manifest.encode(), bundle.manifest.files).members
    return next(member.header_offset for member in members if member.entry.path == path) // size + 1


def test_asking_on_a_terminal(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    made = cut(chunked.tar, 30 * MIB, tmp_path / "a", tmp_path / "b", tmp_path / "c")
    words = ("verify", made[0], "--trust", chunked.trust)
    master, terminal = pty.openpty()
    try:
        with started(host, chunked, *words, stdin=terminal) as process:
            wait_for(process, f"put in the medium with {made[1].name} and press Enter".encode())
            os.write(master, b"\n")
            wait_for(process, f"{made[1].name} is in none of {tmp_path / 'a'}".encode())
            os.write(master, f"{tmp_path / 'b'}\n".encode())
            wait_for(process, f"put in the medium with {made[2].name}".encode())
            os.write(master, f"{tmp_path / 'c'}\n".encode())
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out.startswith(b"good: ")) == (0, True), err
        with started(host, chunked, *words, stdin=terminal) as process:
            wait_for(process, b"q gives up")
            os.write(master, b"q\n")
            _, err = process.communicate(timeout=60)
        assert (process.returncode, f"{made[1].name}: missing".encode() in err) == (5, True), err
    finally:
        os.close(master)
        os.close(terminal)


def test_an_interrupt_ends_the_question(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    made = cut(chunked.tar, 30 * MIB, tmp_path / "a", tmp_path / "b")
    master, terminal = pty.openpty()
    try:
        with started(host, chunked, "verify", made[0], "--trust", chunked.trust, stdin=terminal) as process:
            wait_for(process, b"q gives up")
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
        assert (process.returncode, b"Traceback" in err) == (130, False), err
    finally:
        os.close(master)
        os.close(terminal)


def test_the_pipe_verifies_and_installs(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    data = first.tar.read_bytes()
    code, said = piped(host, first, data, "verify", "-", "--trust", first.trust)
    assert (code, said.startswith("good: ")) == (0, True), said
    code, said = piped(host, first, data, "install", "-", *to_prefix(first, tmp_path / "prefix"))
    assert (code, "is live" in said) == (0, True), said
    assert host.runtime(first.pyz, "verify", *to_prefix(first, tmp_path / "prefix")).returncode == 0
    code, said = piped(host, first, data, "verify", "-", "--trust", first.trust, "--deep")
    assert (code, "--deep reads big files twice" in said) == (2, True)


def test_a_pipe_that_is_cut_and_sent_again(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    data = chunked.tar.read_bytes()
    prefix = tmp_path / "prefix"
    length = len(data) - 2 * MIB
    code, said = piped(host, chunked, data[:length], "install", "-", *to_prefix(chunked, prefix))
    assert code == 5
    assert f"standard input: ended after {length} bytes, expected {len(data)}\n" in said
    assert not (prefix / "current").exists()
    big = next(entry for entry in chunked.manifest.files if entry.path == BIG_PATH)
    partial = prefix / "store/sha256" / big.store_key[:2] / f"{big.store_key}.partial"
    assert partial.stat().st_size >= CHUNK_SIZE, "the first chunk is kept"
    code, said = piped(host, chunked, data, "install", "-", *to_prefix(chunked, prefix))
    assert code == 0, said
    assert not partial.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [("bit", "expected sha256"), ("tail", "bytes after its end"), ("frame", "header or padding changed at byte")],
)
def test_a_pipe_that_lies(tmp_path: Path, host: Host, first: ClosedBundle, change: str, words: str) -> None:
    tar = copy_of(first.tar, tmp_path / "copy")
    size = tar.stat().st_size
    if change == "tail":
        with tar.open("ab") as stream:
            stream.write(b"x")
    else:
        flip_bit(tar, size // 2 if change == "bit" else size - 5)
    for command in (("verify", "-", "--trust", first.trust), ("install", "-", *to_prefix(first, tmp_path / "prefix"))):
        code, said = piped(host, first, tar.read_bytes(), *command)
        assert (code, words in said, "Traceback" in said) == (5, True, False), said
    assert not (tmp_path / "prefix/current").exists()


def test_a_damaged_chunk_across_a_border_is_repaired_in_both_volumes(
    tmp_path: Path, host: Host, chunked: ClosedBundle
) -> None:
    made = cut(chunked.tar, 40 * MIB, tmp_path / "v")
    whole = [path.read_bytes() for path in made]
    flip_bit(made[0], 39 * MIB)
    flip_bit(made[1], 5 * MIB)
    words = ("repair", made[0], "--trust", chunked.trust)
    assert host.runtime(chunked.pyz, *words, "--list").returncode == 5
    done = host.runtime(chunked.pyz, *words, "--from", chunked.tar)
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in made] == whole
    for offset, number in ((39 * MIB, 0), (5 * MIB, 1)):
        flip_bit(made[number], offset)
    source = cut(chunked.tar, 33 * MIB, tmp_path / "w")[0]
    done = host.runtime(chunked.pyz, *words, "--from", source)
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in made] == whole
