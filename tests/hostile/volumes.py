"""Attacks on a bundle in volumes: missing, misplaced, mixed, resized and odd ones. All else is as for one tar."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.hostile.lab import WHEEL, Attack, Lab, Stage

SIZE: Final = 64 * 1024
_STEM: Final = "demo.bundle.tar"


def volume(lab: Lab, number: int) -> Path:
    """Return the path of a volume on the medium."""
    return lab.folder / f"{_STEM}.{number:03}"


def cut(lab: Lab, data: bytes | None = None) -> int:
    """Put the good bundle, or other bytes, onto the medium in volumes; return how many there are."""
    whole = lab.good if data is None else data
    starts = range(0, len(whole), SIZE)
    for number, start in enumerate(starts, start=1):
        volume(lab, number).write_bytes(whole[start : start + SIZE])
    return len(starts)


def _attack(
    name: str, did: str, words: str, change: Callable[[Lab, int], object], stage: Stage = Stage.LAYOUT
) -> Attack:
    def build(lab: Lab) -> Path:
        change(lab, cut(lab))
        return volume(lab, 1)

    return Attack(name=name, did=did, build=build, stage=stage, words=words)


def _resized(number: int, change: int) -> Callable[[Lab, int], None]:
    """Return a change of a volume's size; 0 is the last one."""

    def do(lab: Lab, count: int) -> None:
        path = volume(lab, number or count)
        os.truncate(path, path.stat().st_size + change)

    return do


def _swap(one: int, two: int) -> Callable[[Lab, int], None]:
    def do(lab: Lab, _count: int) -> None:
        first, second = volume(lab, one), volume(lab, two)
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)

    return do


def _flip(position: Callable[[Lab], int]) -> Callable[[Lab, int], None]:
    """Return a change of one bit at an offset of the tar, in whichever volume it lies."""

    def do(lab: Lab, _count: int) -> None:
        index, inside = divmod(position(lab), SIZE)
        data = bytearray(volume(lab, index + 1).read_bytes())
        data[inside] ^= 1
        volume(lab, index + 1).write_bytes(data)

    return do


def _replace(make: Callable[[Path, Lab], object]) -> Callable[[Lab, int], None]:
    def do(lab: Lab, _count: int) -> None:
        path = volume(lab, 2)
        path.unlink()
        make(path, lab)

    return do


def _from_another(lab: Lab, count: int) -> None:
    """Take a volume from another bundle of the same size, whose contents are other ones."""
    other = bytes(byte ^ 0xFF for byte in volume(lab, count).read_bytes())
    volume(lab, count).write_bytes(other)


def _elsewhere(path: Path, lab: Lab) -> None:
    target = lab.folder.parent / "operator" / "stolen"
    target.write_bytes(lab.good[SIZE : 2 * SIZE])
    path.symlink_to(target)


def _lying_index(lab: Lab, count: int) -> None:
    os.truncate(volume(lab, count - 1), SIZE - 512)
    rows = ",".join(f'{{"name":"{_STEM}.{n:03}","size":{SIZE - 512}}}' for n in range(1, count + 1))
    text = f'{{"_type":"urn:sealift:volumes:1","digest":"{"0" * 64}","size":1,"volumes":[{rows}]}}\n'
    (lab.folder / f"{_STEM}.volumes.json").write_text(text)


def _huge_index(lab: Lab, count: int) -> None:
    volume(lab, count).unlink()
    with (lab.folder / f"{_STEM}.volumes.json").open("wb") as stream:
        stream.truncate(1_000_000_000)


VOLUME_ATTACKS: Final = (
    _attack("volume-missing", "left a volume out", f"{_STEM}.003: missing", lambda lab, _: volume(lab, 3).unlink()),
    _attack(
        "volume-missing-last",
        "left the last volume out",
        ": missing, the bundle has ",
        lambda lab, count: volume(lab, count).unlink(),
    ),
    _attack(
        "volume-too-many",
        "added a volume",
        "one volume too many, the bundle has ",
        lambda lab, count: volume(lab, count + 1).write_bytes(b"more"),
    ),
    _attack(
        "volume-zero",
        "added a volume before the first",
        f"{_STEM}.000: one volume too many",
        lambda lab, _: volume(lab, 0).write_bytes(b"more"),
    ),
    _attack("volume-cut", "cut a volume", f"{_STEM}.002: truncated: ", _resized(2, -512)),
    _attack("volume-cut-last", "cut the last volume", ": truncated: ", _resized(0, -512)),
    _attack("volume-longer", "added a byte to a volume", f"{_STEM}.003: too long: ", _resized(3, 1)),
    _attack("volume-longer-last", "added bytes to the last volume", ": too long: ", _resized(0, 512)),
    _attack("volume-first-cut", "cut the first volume", f"{_STEM}.001: truncated: ", _resized(1, -512)),
    _attack("volume-first-longer", "added bytes to the first volume", f"{_STEM}.001: too long: ", _resized(1, 4096)),
    _attack(
        "volume-empty",
        "emptied a volume",
        f"{_STEM}.002: truncated: 0 bytes",
        lambda lab, _: volume(lab, 2).write_bytes(b""),
    ),
    _attack("volume-renamed", "swapped the names of two volumes", "expected sha256 ", _swap(2, 3), Stage.CONTENT),
    _attack(
        "volume-mixed",
        "put a volume of another bundle in place of one",
        "header or padding changed at its byte ",
        _from_another,
    ),
    _attack(
        "volume-content",
        "flipped a bit of a file in a volume",
        f"{WHEEL}: expected sha256 ",
        _flip(lambda lab: lab.member(WHEEL).offset + 5),
        Stage.CONTENT,
    ),
    _attack(
        "volume-header",
        "flipped a bit of a header in a volume",
        "header or padding changed at its byte ",
        _flip(lambda lab: lab.member(WHEEL).header_offset + 100),
    ),
    _attack("volume-is-link", "made a volume a link out of the medium", f"{_STEM}.002: ", _replace(_elsewhere)),
    _attack(
        "volume-is-fifo",
        "made a volume a FIFO, for readers to hang on",
        f"{_STEM}.002: truncated: 0 bytes",
        _replace(lambda path, _: os.mkfifo(path)),
    ),
    _attack("volume-is-folder", "made a volume a folder", f"{_STEM}.002: ", _replace(lambda path, _: path.mkdir())),
    _attack("volume-index-lies", "wrote an index that excuses a cut volume", ": truncated: ", _lying_index),
    _attack("volume-index-1-gb", "sent an index of 1 GB", ": missing, the bundle has ", _huge_index),
)
