"""Building once more, and converting: the sections about what the builder's side does with gigabytes."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.measure import Command, Side, memory_of, seconds_of
from benchmarks.sections import Section, Sections, ratio_row, remove_folder
from benchmarks.table import Row, duration, megabytes
from bundler.snapshots import converter

_CONVERTER: Final = Path(converter.__file__).with_name("__main__.py")
_TO_PICKLE: Final = """
import sys, torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
"""


def rebuild(sections: Sections) -> Iterator[Row]:
    """A build of a lock that didn't change, against locking and building with nothing fetched yet, and against `cp`."""
    bench, work = sections.bench, sections.work
    out, cold = work.folder / "out-again", work.folder / "cold"
    cache = work.folder / "cache"

    def empty() -> None:
        remove_folder(cold)
        cold.mkdir()
        shutil.copy(work.spec, cold / "bench.toml")

    with_cache: Command = ("env", f"XDG_CACHE_HOME={cold / 'cache'}")
    build = work.build_command(cold / "bench.toml", cold / "out")
    ours = Side(label="rebuild", commands=(work.build_command(work.spec, out),), prepare=partial(remove_folder, out))
    fresh = Side(
        label="rebuild: lock + build, nothing fetched yet",
        commands=((*with_cache, *work.bundler, "lock", cold / "bench.toml"), (*with_cache, *build)),
        prepare=empty,
        once=True,
    )
    copy = Side(
        label="rebuild: cp + sync of the payload",
        commands=(("cp", "-r", work.plain, cold / "copy"), ("sync",)),
        prepare=empty,
    )
    found = sections.compare("rebuild", [ours, copy, fresh])
    bench.report(f"the warm cache is {cache}")
    for folder in (out, cold):
        remove_folder(folder)
    yield ratio_row("rebuild-cold", found, ours=ours, peer=fresh, goal=10)
    yield ratio_row("rebuild-copy", found, ours=ours, peer=copy, goal=1.3, sense="at most")


def convert(sections: Sections) -> Iterator[Row]:
    """A pickle of the reference model becomes safetensors: the peak of memory against the size of the file."""
    work = sections.work
    weights = next(iter(work.plain.glob("models/*/model.safetensors")), None)
    if weights is None:
        yield _convert_row(None, 1, 1.0)
        return
    source, output = work.folder / "pickled", work.folder / "converted"
    source.mkdir()
    pickled = source / "pytorch_model.bin"
    sections.bench.run((sys.executable, "-c", _TO_PICKLE, weights, pickled))
    command: Command = (sys.executable, "-I", _CONVERTER, "pickle", source, output)
    side = Side(label="convert", commands=(command,), prepare=partial(remove_folder, output), once=True)
    found = sections.compare("convert", [side])
    size = pickled.stat().st_size
    for folder in (source, output):
        remove_folder(folder)
    yield _convert_row(memory_of(found["convert"]), size, seconds_of(found["convert"]))


def _convert_row(peak: int | None, size: int, seconds: float) -> Row:
    return Row(
        name="convert-memory",
        ours=megabytes(peak or 0),
        against="the size of the .bin",
        peer=megabytes(size),
        value=peak / size if peak else None,
        unit="x",
        sense="at most",
        goal=1.5,
        note=f"it took {duration(seconds)}" if peak else "the tiny payload has no weights",
    )


REBUILDING: Final[Mapping[str, Section]] = {"rebuild": rebuild, "convert": convert}
"""Name -> section, in the order in which they run."""
