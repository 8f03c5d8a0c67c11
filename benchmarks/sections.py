"""The sections of the benchmark: which sides are run, and the rows that follow from them."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from uv import find_uv_bin

from benchmarks.measure import Bench, Command, DiskWatch, Sample, Samples, Side, disk_usage, memory_of, seconds_of
from benchmarks.table import Row, Sense, duration, megabytes
from benchmarks.workload import Workload

_MEMORY_GOAL: Final = 200.0
_HELP_REPEATS: Final = 7


class Sections:
    """Runs sections on one workload; what one measured, another uses.

    Args:
        bench: Runs and measures.
        work: The reference work.
        rounds: How often each side is run, but for those that take minutes.
    """

    def __init__(self, bench: Bench, work: Workload, rounds: int) -> None:
        self.bench = bench
        self.work = work
        self.rounds = rounds
        self.samples: dict[str, Samples] = {}

    def build(self) -> Iterator[Row]:
        """A build from a warm store against the guide's download script."""
        work = self.work
        out, archive = work.folder / "out-measured", work.folder / "payload.tar.gz"
        ours = Side(label="build", commands=(work.build_command(work.spec, out),), prepare=partial(remove_folder, out))
        download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
        guide = Side(
            label="build: pip download + tar czf",
            commands=(
                (*download, "-r", work.pins, "-d", work.guide / "wheels"),
                ("tar", "czf", archive, "-C", work.guide, "."),
            ),
            once=True,
        )
        found = self.compare("build", [ours, guide])
        remove_folder(out)
        yield ratio_row("build", found, ours=ours, peer=guide, goal=40)

    def verify(self) -> Iterator[Row]:
        """Verifying a bundle against hashing the same file, page cache warm."""
        bundle = self.work.bundle
        ours = Side(label="verify", commands=(self._verify_command(),), prepare=partial(read_file, bundle))
        openssl = Side(label="verify: openssl dgst -sha256", commands=(("openssl", "dgst", "-sha256", bundle),))
        coreutils = Side(label="verify: sha256sum", commands=(("sha256sum", bundle),))
        found = self.compare("verify", [ours, openssl, coreutils])
        yield ratio_row("verify", found, ours=ours, peer=openssl, goal=1.8)
        yield ratio_row("verify-sha256sum", found, ours=ours, peer=coreutils, goal=7)

    def install(self) -> Iterator[Row]:
        """An install into a fresh prefix against the guide's script, and against the least that has to be done."""
        ours = self._install_side()
        guide, lean = self._guide_side(), self._guide_side("--no-compile")
        bare = self._bare_side()
        found = self.compare("install", [ours, bare, guide, lean])
        for folder in ("prefix", "peer"):
            remove_folder(self.work.folder / folder)
        yield ratio_row("install", found, ours=ours, peer=guide, goal=8)
        yield ratio_row("install-lean", found, ours=ours, peer=lean, goal=8)
        yield ratio_row("install-bare", found, ours=ours, peer=bare, goal=1.3, sense="at most")

    def memory(self) -> Iterator[Row]:
        """The largest process of build, verify and install, and of verifying a huge model."""
        out = self.work.folder / "out-measured"
        sides: Mapping[str, Callable[[], Side]] = {
            "build": lambda: Side(label="build", commands=(self.work.build_command(self.work.spec, out),)),
            "verify": lambda: Side(label="verify", commands=(self._verify_command(),)),
            "install": self._install_side,
        }
        for name, side in sides.items():
            known = self.samples.get(name, {}).get(name)
            yield _memory(f"memory-{name}", known or [self.bench.measure(side())])
        remove_folder(out)
        yield self._sparse_memory()

    def disk(self) -> Iterator[Row]:
        """The most that a prefix takes while installing, against what the release takes in the end."""
        side = self._install_side()
        side.prepare()
        prefix = self.work.folder / "prefix"
        with DiskWatch(prefix) as watch:
            self.bench.run(side.commands[0])
        (release,) = (prefix / "releases").iterdir()
        installed = disk_usage(release)
        yield Row(
            name="disk",
            ours=megabytes(watch.peak),
            against="the installed release with its wheels",
            peer=megabytes(installed),
            value=watch.peak / installed,
            unit="x",
            sense="at most",
            goal=1.1,
        )

    def reinstall(self) -> Iterator[Row]:
        """The same bundle once more, and back to the release before."""
        prefix = self.work.folder / "prefix"
        if not (prefix / "current").exists():
            self.bench.run(self._install_command(self.work.bundle))
        self.bench.run(self._install_command(self.work.next_bundle))
        again = Side(label="reinstall", commands=(self._install_command(self.work.next_bundle),))
        found = self.compare("reinstall", [again])
        back = Side(label="rollback", commands=((*self.work.runtime, "rollback", "--prefix", prefix),))
        found = {**found, **self.compare("rollback", [back])}
        remove_folder(prefix)
        yield _within("reinstall", found["reinstall"], 2.0)
        yield _within("rollback", found["rollback"], 2.0)

    def help(self) -> Iterator[Row]:
        """How long a command takes to say its options."""
        plain = Side(label="help: python -c pass", commands=((sys.executable, "-c", "pass"),))
        bundler = Side(label="help: bundler", commands=((*self.work.bundler, "--help"),))
        runtime = Side(label="help: runtime", commands=((*self.work.runtime, "--help"),))
        found = self.compare("help", [plain, bundler, runtime], rounds=max(_HELP_REPEATS, self.rounds))
        yield _more("help-bundler", found, bundler, plain)
        yield _more("help-runtime", found, runtime, plain)

    def compare(self, name: str, sides: Sequence[Side], rounds: int | None = None) -> Samples:
        """Measure sides in turn, and keep the samples under ``name``."""
        self.samples[name] = self.bench.compare(sides, rounds or self.rounds)
        return self.samples[name]

    def _verify_command(self) -> Command:
        return (*self.work.runtime, "verify", self.work.bundle, "--trust", self.work.trust)

    def _install_command(self, bundle: Path) -> Command:
        options = ("--prefix", self.work.folder / "prefix", "--trust", self.work.trust, "--no-smoke")
        return (*self.work.runtime, "install", bundle, *options)

    def _install_side(self) -> Side:
        bundle = self.work.bundle

        def prepare() -> None:
            remove_folder(self.work.folder / "prefix")
            read_file(bundle)

        return Side(label="install", commands=(self._install_command(bundle), ("sync",)), prepare=prepare)

    def _guide_side(self, *options: str) -> Side:
        """What a guide's script does: unpack, a venv, pip without an index; ``options`` for pip."""
        archive, peer = self.work.archive, self.work.folder / "peer"
        pip: Command = (peer / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", *options)
        return Side(
            label=" ".join(["install: tar xzf + pip install --no-index", *options]),
            commands=(
                ("tar", "xzf", archive, "-C", peer),
                (sys.executable, "-m", "venv", peer / "venv"),
                (*pip, "--find-links", peer / "wheels", "-r", self.work.pins),
                ("sync",),
            ),
            prepare=partial(_renew, peer, archive),
            once=True,
        )

    def _bare_side(self) -> Side:
        """The least that has to be done, unchecked: copy the payload, and uv with a fresh cache."""
        plain, peer = self.work.plain, self.work.folder / "peer"
        uv = find_uv_bin()
        cache: Command = ("--cache-dir", peer / "uv-cache", "--offline", "--quiet")
        install = (uv, "pip", "install", *cache, "--python", peer / "venv" / "bin" / "python", "--no-deps")
        return Side(
            label="install: cp + uv pip install",
            commands=(
                ("cp", "-r", plain / "models", plain / "wheels", peer),
                (uv, "venv", *cache, "--python", sys.executable, peer / "venv"),
                (*install, "--no-index", "--find-links", peer / "wheels", "-r", self.work.pins),
                ("sync",),
            ),
            prepare=partial(_renew, peer, *plain.rglob("*")),
        )

    def _sparse_memory(self) -> Row:
        folder, size = self.work.folder / "sparse", self.work.size.sparse
        folder.mkdir(exist_ok=True)
        self.bench.report(f"sparse bundle of {size / 1e9:.1f} GB")
        self.bench.run((sys.executable, "-m", "benchmarks.sparse", folder, str(size)))
        trust = folder / "key.allowed_signers"
        command: Command = (*self.work.runtime, "verify", folder / "sparse.bundle.tar", "--trust", trust)
        sample = self.bench.measure(Side(label="verify, sparse", commands=(command,)))
        remove_folder(folder)
        return _memory("memory-verify-huge", [sample], f"a model of {size / 1e9:.1f} GB, sparse")


Section: TypeAlias = Callable[[Sections], Iterator[Row]]

CORE: Final[Mapping[str, Section]] = {
    "build": Sections.build,
    "verify": Sections.verify,
    "install": Sections.install,
    "memory": Sections.memory,
    "disk": Sections.disk,
    "reinstall": Sections.reinstall,
    "help": Sections.help,
}
"""Name -> section, in the order in which they run."""


def ratio_row(name: str, found: Samples, *, ours: Side, peer: Side, goal: float, sense: Sense = "at least") -> Row:
    """Compare medians: ``at least`` says how many times faster we are, ``at most`` how many times slower."""
    mine, theirs = seconds_of(found[ours.label]), seconds_of(found[peer.label])
    return Row(
        name=name,
        ours=duration(mine),
        against=peer.label.partition(": ")[2] + (" (once)" if peer.once else ""),
        peer=duration(theirs),
        value=theirs / mine if sense == "at least" else mine / theirs,
        unit="x",
        sense=sense,
        goal=goal,
    )


def _more(name: str, found: Samples, ours: Side, plain: Side) -> Row:
    mine, theirs = seconds_of(found[ours.label]), seconds_of(found[plain.label])
    return Row(
        name=name,
        ours=duration(mine),
        against="python -c pass",
        peer=duration(theirs),
        value=(mine - theirs) * 1000,
        unit="ms",
        sense="at most",
        goal=150,
    )


def _within(name: str, samples: Sequence[Sample], goal: float) -> Row:
    seconds = seconds_of(samples)
    return Row(
        name=name,
        ours=duration(seconds),
        against="-",
        peer="-",
        value=seconds,
        unit="s",
        sense="at most",
        goal=goal,
    )


def _memory(name: str, samples: Sequence[Sample], against: str = "-") -> Row:
    peak = memory_of(samples)
    return Row(
        name=name,
        ours=megabytes(peak),
        against=against,
        peer="-",
        value=peak / 1e6,
        unit="MB",
        sense="at most",
        goal=_MEMORY_GOAL,
    )


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _renew(folder: Path, *inputs: Path) -> None:
    """Have an empty folder, and the inputs in the page cache."""
    remove_folder(folder)
    folder.mkdir()
    for path in inputs:
        read_file(path)


def read_file(path: Path) -> None:
    """Bring a file into the page cache, as it is for every side."""
    if path.is_file():
        with path.open("rb", buffering=0) as stream:
            buffer = bytearray(1 << 20)
            while stream.readinto(buffer):
                pass
