"""``python -m benchmarks``: measure everything side by side, print the table of ratios and goals."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.measure import Bench, BenchmarkError
from benchmarks.registry import SECTIONS
from benchmarks.sections import Sections
from benchmarks.table import Row, render_table
from benchmarks.workload import FULL, SMALL, Size, Workload
from manifests.errors import SealiftError

_ROOT: Final = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when everything could be measured, whatever the verdicts."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _parse(argv)
    size = SMALL if arguments.small else FULL
    names = [name for name in SECTIONS if not arguments.only or name in arguments.only]
    try:
        with _work_folder(arguments.directory) as folder:
            rows, document = _run(folder, size, names, arguments.rounds)
    except SealiftError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(render_table(rows))
    print(f"\n{document['conditions']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=3, help="runs of each side (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a tiny payload: checks the harness, measures nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="work below DIR (default: TMPDIR or /var/tmp)")
    text = f"may be given several times: {', '.join(SECTIONS)}"
    parser.add_argument("--only", choices=tuple(SECTIONS), action="append", metavar="SECTION", help=text)
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text!r}")
    return int(text)


@contextmanager
def _work_folder(parent: Path | None) -> Iterator[Path]:
    """Yield a folder that is gone afterwards."""
    below = parent or Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 # a fresh folder is made in it
    below.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sealift-bench-", dir=below.absolute()) as name:
        yield Path(name)


def _run(folder: Path, size: Size, names: Sequence[str], rounds: int) -> tuple[list[Row], dict[str, object]]:
    free = shutil.disk_usage(folder).free
    if free < size.needs:
        msg = f"{folder.parent}: {free / 1e9:.1f} GB are free, the benchmark needs {size.needs / 1e9:.1f} GB"
        raise BenchmarkError(msg, hint="python -m benchmarks --directory DIR")
    bench = Bench(folder=folder, environment=_environment(folder), report=_report)
    sections = Sections(bench, Workload(bench, size), rounds)
    before, start = os.getloadavg()[0], time.perf_counter()
    rows = []
    for row in (row for name in names for row in SECTIONS[name](sections)):
        _report(json.dumps(row.to_json()))  # a later section may fail
        rows.append(row)
    tiny = "tiny payload: the figures mean nothing; " if size is SMALL else ""
    conditions = (
        f"{tiny}{rounds} rounds in {time.perf_counter() - start:.0f} s on {len(os.sched_getaffinity(0))} cores, "
        f"load {before:.1f} at the start and {os.getloadavg()[0]:.1f} at the end; times are medians, memory is the "
        "highest peak of one process, (once): takes minutes, so only in the first round"
    )
    samples = {
        section: {label: [[item.seconds, item.memory] for item in runs] for label, runs in sides.items()}
        for section, sides in sections.samples.items()
    }
    return rows, {"rows": [row.to_json() for row in rows], "conditions": conditions, "samples": samples}


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of everything that is run: its own caches, and Sealift importable from anywhere.

    Bytecode is written and used, as it is of a package that pip installed; the first round of a fresh clone has none.
    """
    (folder / "tmp").mkdir()
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": path}
    return {**inherited, **own, "PIP_NO_INPUT": "1"}


def _report(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
