"""Hostile files and bundles given to ``repair --from``: the worst that they can do is not to help.

Each is tried on a bundle with one bad file on its medium, and on a prefix with one bad file in its store.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from manifests.chunkfile import CHUNKS_MAGIC
from manifests.digests import CHUNK_SIZE, sha256_hex
from tests.factories import Key, make_bundle, make_key, unpack_bundle
from tests.factories_cli import ROOT
from tests.factories_closed import ClosedBundle, flip_bit, make_closed_bundle, make_host
from tests.hostile.entrypoints import Ended, run

LOST: Final = "config/lost.yaml"
DATA: Final = b"key: value\n" * 40
DIGEST: Final = sha256_hex(DATA)
REMAINS: Final = "# 1 damaged chunks found, 1 remain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where an attacker makes a repair file: an empty folder, a key that nobody trusts, and the good bundle."""

    folder: Path
    stranger: Key
    good: ClosedBundle

    def write(self, data: bytes) -> Path:
        """Put a file there."""
        path = self.folder / "repair"
        path.write_bytes(data)
        return path

    def tar(self) -> Path:
        """Put a copy of the good bundle there."""
        return self.write(self.good.tar.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairAttack:
    """One row: its name, what the attacker did, how the file is made, what is said of it."""

    name: str
    did: str
    build: Callable[[Bench], Path]
    words: str = REMAINS
    code: int = 5


def listed(*lines: bytes | tuple[str, int], data: bytes = b"", end: bytes = b"\n") -> Callable[[Bench], Path]:
    """Return what writes a repair file with these lines in its list."""
    rows = [line if isinstance(line, bytes) else f"{line[0]} {line[1]}\n".encode() for line in lines]
    return lambda bench: bench.write(CHUNKS_MAGIC + b"".join(rows) + end + data)


def _other_bundle(bench: Bench) -> Path:
    return make_bundle(bench.folder, {"config/other.yaml": DATA[:-1]}, key=bench.stranger)


def _damaged_bundle(bench: Bench) -> Path:
    tar = bench.tar()
    flip_bit(tar, tar.read_bytes().index(DATA))
    return tar


def _cut_bundle(bench: Bench) -> Path:
    return bench.write(bench.good.tar.read_bytes()[:-2048])


def _folder(bench: Bench) -> Path:
    return unpack_bundle(bench.good.tar, bench.folder)


def _linked_out(bench: Bench) -> Path:
    """The folder of the good bundle, whose file is a link to something of the operator's."""
    folder = _folder(bench)
    (folder / LOST).unlink()
    (folder / LOST).symlink_to("/etc/passwd")
    return folder


def _linked_folder(bench: Bench) -> Path:
    folder = _folder(bench)
    (folder / "config").rename(folder / "elsewhere")
    (folder / "config").symlink_to("elsewhere")
    return folder


def _fifo_in_folder(bench: Bench) -> Path:
    folder = _folder(bench)
    (folder / LOST).unlink()
    os.mkfifo(folder / LOST)
    return folder


def _no_manifest(bench: Bench) -> Path:
    folder = _folder(bench)
    (folder / "manifest.json").unlink()
    return folder


def _deep_manifest(bench: Bench) -> Path:
    folder = _folder(bench)
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    return folder


def _fifo(bench: Bench) -> Path:
    os.mkfifo(bench.folder / "repair")
    return bench.folder / "repair"


def _link_to(target: str) -> Callable[[Bench], Path]:
    def build(bench: Bench) -> Path:
        (bench.folder / "repair").symlink_to(target)
        return bench.folder / "repair"

    return build


def _attack(name: str, did: str, build: Callable[[Bench], Path], words: str = REMAINS, code: int = 5) -> RepairAttack:
    return RepairAttack(name=name, did=did, build=build, words=words, code=code)


SIZE: Final = len(DATA)
LINE: Final = f"{DIGEST} {SIZE}\n".encode()
NO_END: Final = "a repair file without an end of its list"
NO_LINE: Final = ":2: not a digest and a size of at most 67108864 bytes"
NO_BUNDLE: Final = "is not a Sealift bundle"

LISTS: Final = (
    _attack("repair-empty", "an empty file", lambda bench: bench.write(b""), NO_BUNDLE),
    _attack("repair-magic-cut", "half of the first line", lambda bench: bench.write(CHUNKS_MAGIC[:8]), NO_BUNDLE),
    _attack("repair-magic-next", "a format of tomorrow", lambda bench: bench.write(b"sealift-chunks-2\n"), NO_BUNDLE),
    _attack("repair-magic-alone", "the first line alone", lambda bench: bench.write(CHUNKS_MAGIC), NO_END),
    _attack("repair-list-cut", "cut in the list", lambda bench: bench.write(CHUNKS_MAGIC + LINE[:40]), NO_END),
    _attack("repair-list-endless", "a list that doesn't end", listed(LINE * 230_000, end=b""), NO_END),
    _attack("repair-list-crlf", "carriage returns", listed(LINE.replace(b"\n", b"\r\n"), data=DATA), NO_LINE),
    _attack("repair-digest-upper", "capital letters", listed((DIGEST.upper(), SIZE), data=DATA), NO_LINE),
    _attack("repair-digest-short", "a digest cut short", listed((DIGEST[:-1], SIZE), data=DATA), NO_LINE),
    _attack("repair-digest-path", "a path for a digest", listed(("../../etc/passwd", SIZE), data=DATA), NO_LINE),
    _attack("repair-digest-escape", "bytes for the terminal", listed(b"\x1b[2J\x1b]0;x\x07 5\n", data=DATA), NO_LINE),
    _attack("repair-digest-nul", "a zero byte in the list", listed(DIGEST.encode() + b"\0 5\n", data=DATA), NO_LINE),
    _attack("repair-size-negative", "a negative size", listed((DIGEST, -SIZE), data=DATA), NO_LINE),
    _attack("repair-size-2-to-63", "a size of 2^63", listed((DIGEST, 1 << 63), data=DATA), NO_LINE),
    _attack("repair-size-chunk", "a size over 64 MiB", listed((DIGEST, CHUNK_SIZE + 1), data=DATA), NO_LINE),
    _attack("repair-size-octal", "a leading zero", listed(f"{DIGEST} 0{SIZE}\n".encode(), data=DATA), NO_LINE),
    _attack("repair-size-missing", "no size", listed(f"{DIGEST}\n".encode(), data=DATA), NO_LINE),
    _attack("repair-size-words", "more than a size", listed(f"{DIGEST} {SIZE} x\n".encode(), data=DATA), NO_LINE),
)

BYTES: Final = (
    _attack("repair-data-cut", "cut in a chunk", listed(LINE, data=DATA[:-1]), " bytes, its list says 527"),
    _attack("repair-data-longer", "a byte after the end", listed(LINE, data=DATA + b"x"), " bytes, its list says 527"),
    _attack("repair-data-missing", "a list and no chunk", listed(LINE), " bytes, its list says 527"),
    _attack("repair-size-short", "half of the chunk, said so", listed((DIGEST, SIZE // 2), data=DATA[: SIZE // 2])),
    _attack("repair-size-zero", "a chunk of no bytes", listed((DIGEST, 0))),
    _attack("repair-bit", "a flipped bit", listed(LINE, data=DATA[:-1] + b"\x0b")),
    _attack("repair-other-bytes", "bytes of the attacker's", listed(LINE, data=b"evil: true\n" * 40)),
    _attack("repair-other-chunk", "a chunk of another bundle", listed((sha256_hex(b"x"), 1), data=b"x")),
    _attack(
        "repair-shifted",
        "two chunks, each under the other's digest",
        listed((sha256_hex(b"x" * SIZE), SIZE), (DIGEST, SIZE), data=DATA + b"x" * SIZE),
    ),
    _attack("repair-twice", "the digest again, with other bytes", listed(LINE, LINE, data=DATA + bytes(SIZE))),
)

OTHERS: Final = (
    _attack("repair-bundle-other", "another bundle by a stranger", _other_bundle),
    _attack("repair-bundle-damaged", "the bundle, damaged at the same place", _damaged_bundle),
    _attack("repair-bundle-cut", "the bundle without its end", _cut_bundle, "truncated: "),
    _attack("repair-folder-link", "a link to a file of the operator's", _linked_out),
    _attack("repair-folder-linked", "a folder that is a link", _linked_folder),
    _attack("repair-folder-fifo", "a pipe for a file", _fifo_in_folder),
    _attack("repair-folder-no-manifest", "a folder without its manifest", _no_manifest, "manifest.json"),
    _attack("repair-folder-deep-json", "a manifest of 100,000 brackets", _deep_manifest, "manifest.json"),
    _attack("repair-folder-empty", "an empty folder", lambda bench: bench.folder, "manifest.json"),
    _attack("repair-fifo", "a pipe", _fifo, "is not a regular file"),
    _attack("repair-device", "a link to an endless device", _link_to("/dev/zero"), "is not a regular file"),
    _attack("repair-link-nowhere", "a link to nothing", _link_to("nothing"), "no such bundle", 2),
    _attack("repair-link-loop", "a link to itself", _link_to("repair"), "", 2),
)

REPAIRS: Final = (*LISTS, *BYTES, *OTHERS)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Key, Key]) -> ClosedBundle:
    """A bundle with the file that is going to be damaged; never write to it."""
    return make_closed_bundle(tmp_path_factory.mktemp("good"), keys[0], extra={LOST: DATA})


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory, good: ClosedBundle) -> Path:
    """The bundle with a bit of the file flipped; whoever heals it copies it first."""
    path = tmp_path_factory.mktemp("medium") / good.tar.name
    path.write_bytes(good.tar.read_bytes())
    flip_bit(path, path.read_bytes().index(DATA) + 7)
    return path


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory, good: ClosedBundle) -> Path:
    """A prefix with a bit of the file flipped."""
    folder = tmp_path_factory.mktemp("installed")
    host, prefix = make_host(folder / "home"), folder / "prefix"
    done = host.runtime(good.pyz, "install", good.tar, "--prefix", prefix, "--trust", good.trust, "--no-smoke")
    assert done.returncode == 0, done.stderr
    path = prefix / "current" / LOST
    path.chmod(0o644)
    flip_bit(path, 7)
    path.chmod(0o444)
    return prefix


@pytest.fixture
def bench(tmp_path: Path, keys: tuple[Key, Key], good: ClosedBundle) -> Bench:
    """The attacker's."""
    (tmp_path / "bench").mkdir()
    return Bench(folder=tmp_path / "bench", stranger=keys[1], good=good)


def repair(what: list[str], good: ClosedBundle, source: Path) -> Ended:
    return run("runtime", ["repair", *what, "--trust", str(good.trust), "--from", str(source)])


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, inode and content of what lies below ``folder``, but for a command's lock and the audit log."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        if not path.name.startswith(("install.", "audit.")):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path)] = (status.st_mode, status.st_ino, content)
    return found


@pytest.mark.parametrize("attack", REPAIRS, ids=lambda attack: attack.name)
def test_a_hostile_source_is_no_help_and_no_harm(
    attack: RepairAttack, bench: Bench, good: ClosedBundle, medium: Path, prefix: Path
) -> None:
    source = attack.build(bench)
    before = state_of(prefix), medium.read_bytes(), state_of(bench.folder)
    for what in ([str(medium)], ["--prefix", str(prefix)]):
        ended = repair(what, good, source)
        assert (ended.code, attack.words in ended.said) == (attack.code, True), ended
        assert "Traceback" not in ended.said
        assert "\x1b" not in ended.said, "the attacker's bytes reach the terminal"
    assert (state_of(prefix), medium.read_bytes(), state_of(bench.folder)) == before


HARMLESS: Final = (
    _attack("chunk", "a good repair file", listed(LINE, data=DATA)),
    _attack("longer", "a chunk with more behind it", listed((DIGEST, SIZE + 4), data=DATA + b"more")),
    _attack("bad-first", "a bad chunk before the good one", listed(LINE, LINE, data=bytes(SIZE) + DATA)),
    _attack("bundle", "the good bundle", Bench.tar),
    _attack("folder", "its folder", _folder),
)


@pytest.mark.parametrize("attack", HARMLESS, ids=lambda attack: attack.name)
def test_what_heals_has_the_signed_bytes(
    attack: RepairAttack, bench: Bench, good: ClosedBundle, medium: Path, tmp_path: Path
) -> None:
    source = attack.build(bench)
    copy = tmp_path / "copy.bundle.tar"
    copy.write_bytes(medium.read_bytes())
    ended = repair([str(copy)], good, source)
    assert (ended.code, f"# healed {LOST}" in ended.said) == (0, True), ended
    assert copy.read_bytes() == good.tar.read_bytes()


def test_a_link_to_a_good_file_is_followed(bench: Bench, good: ClosedBundle, medium: Path, tmp_path: Path) -> None:
    """The operator's own word may be a link; what it leads to is checked like any other."""
    (tmp_path / "link").symlink_to(listed(LINE, data=DATA)(bench))
    copy = tmp_path / "copy.bundle.tar"
    copy.write_bytes(medium.read_bytes())
    assert repair([str(copy)], good, tmp_path / "link").code == 0
    assert copy.read_bytes() == good.tar.read_bytes()


def test_a_bundle_that_nobody_trusts_is_not_repaired(bench: Bench, medium: Path, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    before = medium.read_bytes()
    words = ["repair", str(medium), "--trust", str(stranger.allowed_signers), "--from", str(bench.tar())]
    assert run("runtime", words).code == 4
    assert medium.read_bytes() == before


def test_the_table() -> None:
    names = [attack.name for attack in REPAIRS]
    assert len(set(names)) == len(names)
    assert len({attack.did for attack in REPAIRS}) == len(names)
    told = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    assert f"that lies ({len(names)} cases)" in told
