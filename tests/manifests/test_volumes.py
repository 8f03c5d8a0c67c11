"""Volumes: the same bundle from any cut, every misplacement named by its volume, and media that come in turn."""

import os
import subprocess
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import pytest

from manifests.bundle import verify_content, verify_trust
from manifests.digests import CHUNK_SIZE, sha256_hex
from manifests.errors import DiskError, IntegrityError, UsageError
from manifests.manifest import Manifest, parse_manifest
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.sources import MediumError, StreamSource, Supply
from manifests.tarlayout import SIGNATURE_SLOT, head_of, tar_layout
from manifests.volumes import VolumeSource, encode_index
from tests.factories import NOW, SMALL_FILES, Content, Key, is_root, make_bundle, make_manifest
from tests.factories_closed import program
from tests.factories_media import cut

SIZE = 23 * 1024
MODEL = "models/tiny/model.safetensors"
FILES: dict[str, Content] = {
    **SMALL_FILES,
    MODEL: b"".join(sha256_hex(bytes([n % 256, n // 256])).encode() for n in range(2000)),
}


def check(path: Path, supply: Supply | None = None, *, deep: bool = False) -> Manifest:
    with open_medium(path, supply) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        verify_content(medium, manifest, Silent(), deep=deep, threads=2)
    return manifest


def refusal(path: Path, supply: Supply | None = None) -> IntegrityError:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(IntegrityError) as caught:
        check(path, supply)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    return caught.value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """A bundle of about seven volumes, of which the middle ones hold nothing but the model; never written to."""
    return make_bundle(tmp_path_factory.mktemp("whole") / "b.bundle.tar", FILES, key=key)


@pytest.fixture
def volumes(whole: Path, tmp_path: Path) -> list[Path]:
    return cut(whole, SIZE, tmp_path / "stick")


@pytest.mark.parametrize("size", [20_001, SIZE, 65_536, 10_000_000])
def test_any_cut_is_the_same_bundle(whole: Path, tmp_path: Path, key: Key, size: int) -> None:
    made = cut(whole, size, tmp_path / "stick")
    assert len(made) == -(-whole.stat().st_size // size)
    assert check(made[0]) == make_manifest(FILES)
    with open_medium(made[0]) as medium:
        bundle = verify_trust(medium, key.trust, now=NOW)
        verify_content(medium, bundle.manifest, Silent(), deep=True)
        assert medium.label == str(made[0])
        assert not medium.ordered
    assert b"".join(path.read_bytes() for path in made) == whole.read_bytes()


def test_volumes_in_several_folders(whole: Path, tmp_path: Path) -> None:
    folders = tuple(tmp_path / name for name in ("a", "b", "c"))
    made = cut(whole, SIZE, *folders)
    assert check(made[0], Supply(folders=folders)) == make_manifest(FILES)
    assert check(made[0], Supply(folders=(*folders, tmp_path / "a" / ".." / "b"))) == make_manifest(FILES)
    error = refusal(made[0], Supply(folders=folders[1:2]))
    assert error.message.splitlines()[1] == "  b.bundle.tar.003: missing, the bundle has 7 volumes"
    assert error.hint == "name the folders they are in: --volumes DIR"


def test_a_folder_that_is_not_there(volumes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"^can't read .*gone: No such file or directory$"):
        check(volumes[0], Supply(folders=(tmp_path / "gone",)))


def test_not_the_first_volume(volumes: list[Path]) -> None:
    with pytest.raises(UsageError) as caught:
        check(volumes[1])
    assert caught.value.message == f"{volumes[1]}: is not the first volume"
    assert caught.value.hint == f"give {volumes[0]}"


def test_the_name_without_a_number(volumes: list[Path]) -> None:
    with pytest.raises(UsageError) as caught:
        check(volumes[0].with_suffix(""))
    assert caught.value.hint == f"it is in volumes: give {volumes[0]}"


def lines_of(error: IntegrityError) -> list[str]:
    return [line.strip() for line in error.message.splitlines()[1:]]


def test_missing_volumes(volumes: list[Path]) -> None:
    for path in (volumes[2], volumes[6]):
        path.unlink()
    assert lines_of(refusal(volumes[0])) == [
        "b.bundle.tar.003: missing, the bundle has 7 volumes",
        "b.bundle.tar.007: missing, the bundle has 7 volumes",
    ]


def test_a_volume_too_many(volumes: list[Path]) -> None:
    for number in ("000", "008"):
        volumes[0].with_suffix(f".{number}").write_bytes(b"x")
    assert lines_of(refusal(volumes[0])) == [
        "b.bundle.tar.000: one volume too many, the bundle has 7",
        "b.bundle.tar.008: one volume too many, the bundle has 7",
    ]


@pytest.mark.parametrize("number", [2, 4, 7])
@pytest.mark.parametrize("change", [-1, 1, 512])
def test_a_volume_of_another_size(volumes: list[Path], number: int, change: int) -> None:
    path = volumes[number - 1]
    size = path.stat().st_size
    os.truncate(path, size + change)
    what = "truncated" if change < 0 else "too long"
    assert lines_of(refusal(volumes[0])) == [f"{path.name}: {what}: {size + change} bytes, expected {size}"]


def test_an_empty_volume(volumes: list[Path]) -> None:
    os.truncate(volumes[3], 0)
    assert lines_of(refusal(volumes[0])) == [f"b.bundle.tar.004: truncated: 0 bytes, expected {SIZE}"]


@pytest.mark.parametrize("change", [-512, 1, 5000])
def test_a_first_volume_of_another_size_is_found_by_the_others(volumes: list[Path], change: int) -> None:
    os.truncate(volumes[0], SIZE + change)
    what = "truncated" if change < 0 else "too long"
    assert lines_of(refusal(volumes[0])) == [f"b.bundle.tar.001: {what}: {SIZE + change} bytes, expected {SIZE}"]


def test_the_index_helps_where_there_are_two(whole: Path, tmp_path: Path) -> None:
    made = cut(whole, whole.stat().st_size - 4000, tmp_path)
    size = made[0].stat().st_size
    os.truncate(made[0], size - 512)
    expected = f"b.bundle.tar.002: truncated: 4000 bytes, expected {4000 + 512}"
    assert lines_of(refusal(made[0])) == [expected]
    index = encode_index([(path.name, n) for path, n in zip(made, (size, 4000), strict=True)], "0" * 64)
    (tmp_path / "b.bundle.tar.volumes.json").write_bytes(index)
    known = f"b.bundle.tar.001: {size - 512} bytes, the index beside it says {size}"
    assert lines_of(refusal(made[0])) == [known, expected]


@pytest.mark.parametrize("text", [b"", b"{}\n", b"[]\n", b"\xff", b'{"volumes":[{"size":-1}]}\n', b'{"volumes":3}\n'])
def test_an_index_is_never_believed(volumes: list[Path], text: bytes) -> None:
    volumes[0].with_name("b.bundle.tar.volumes.json").write_bytes(text)
    assert check(volumes[0]) == make_manifest(FILES)
    volumes[1].unlink()
    os.truncate(volumes[2], 5)
    assert lines_of(refusal(volumes[0])) == [f"b.bundle.tar.003: truncated: 5 bytes, expected {SIZE}"]


def test_a_first_volume_that_is_too_short_for_the_rest(volumes: list[Path], tmp_path: Path) -> None:
    """A tiny first volume would make more volumes than there are numbers, and nobody counts them."""
    huge: dict[str, Content] = {"models/big/weights.bin": 0}
    manifest = make_manifest(huge)
    head = head_of(manifest.encode())
    path = tmp_path / "x.001"
    path.write_bytes(head + b"\n" * SIGNATURE_SLOT + bytes(512))
    assert len(lines_of(refusal(path))) == 1
    os.truncate(volumes[0], len(head_of(make_manifest(FILES).encode())) + 100)
    assert str(refusal(volumes[0])) == f"{volumes[0]}: truncated within manifest.json.sig"


def test_volumes_in_another_order(volumes: list[Path]) -> None:
    """Two volumes changed places: by size they fit; both hold nothing but one file's content."""
    third, fourth = volumes[2].read_bytes(), volumes[3].read_bytes()
    volumes[2].write_bytes(fourth)
    volumes[3].write_bytes(third)
    (line,) = lines_of(refusal(volumes[0]))
    names = " or ".join(path.name for path in volumes[1:7])
    assert line.startswith(f"{names}: {MODEL}: expected sha256 ")


def test_a_changed_volume_is_named_by_file_and_the_others_too(volumes: list[Path]) -> None:
    layout = tar_layout(make_manifest(FILES).encode(), make_manifest(FILES).files)
    header = next(member for member in layout.members if member.entry.path == MODEL).header_offset
    assert header // SIZE == 1
    with volumes[1].open("r+b") as stream:
        stream.seek(header - SIZE)
        stream.write(b"evil")
    last = layout.members[-1]
    with volumes[-1].open("r+b") as stream:
        stream.seek(last.offset - 6 * SIZE)
        stream.write(b"!")
    error = refusal(volumes[0])
    one, two = lines_of(error)
    assert one == f"b.bundle.tar.002: header or padding changed at its byte {header - SIZE}, before {MODEL}"
    assert two.startswith(f"b.bundle.tar.007: {last.entry.path}: expected sha256 ")
    assert error.hint == "only these are to be carried again: b.bundle.tar.002, b.bundle.tar.007"


def test_a_volume_of_another_bundle(volumes: list[Path], tmp_path: Path, key: Key) -> None:
    other = make_bundle(tmp_path / "b.bundle.tar", {**FILES, MODEL: bytes(128_000)}, key=key)
    theirs = cut(other, SIZE, tmp_path / "other")
    volumes[6].write_bytes(theirs[6].read_bytes())
    volumes[3].write_bytes(theirs[3].read_bytes())
    assert any("b.bundle.tar.004" in line for line in lines_of(refusal(volumes[0])))


def test_a_chunk_across_a_border(tmp_path: Path, key: Key) -> None:
    files: dict[str, Content] = {"models/m/w.bin": 2 * CHUNK_SIZE + 5}
    tar = make_bundle(tmp_path / "b.tar", files, key=key)
    volume = 48 * 1024 * 1024
    split = [program("split"), "-b", str(volume), "--numeric-suffixes=1", "-a", "3"]
    subprocess.run([*split, str(tar), f"{tar}."], check=True)
    assert check(tar.with_name("b.tar.001")) == make_manifest(files)
    with tar.with_name("b.tar.002").open("r+b") as stream:
        stream.seek(30 * 1024 * 1024)
        stream.write(b"x")
    error = refusal(tar.with_name("b.tar.001"))
    assert lines_of(error)[0].startswith("b.tar.002 or b.tar.003: models/m/w.bin chunk 1: expected sha256 ")


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_a_volume_that_is_no_file(volumes: list[Path], tmp_path: Path, what: str) -> None:
    data = volumes[2].read_bytes()
    volumes[2].unlink()
    if what == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        volumes[2].symlink_to(tmp_path / "elsewhere")
    elif what == "fifo":
        os.mkfifo(volumes[2])
    else:
        volumes[2].mkdir()
    (line,) = lines_of(refusal(volumes[0]))
    assert line.startswith("b.bundle.tar.003: ")


def test_a_volume_in_two_folders(volumes: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "other" / volumes[2].name
    twin.parent.mkdir()
    twin.write_bytes(volumes[2].read_bytes())
    error = refusal(volumes[0], Supply(folders=(twin.parent,)))
    assert error.hint == "carry a volume of the wrong size again; take away one that is too many or there twice"
    (line,) = lines_of(error)
    assert line == f"b.bundle.tar.003: is there twice: {volumes[2]} and {twin}; take one away"


@pytest.mark.skipif(not is_root(), reason="mounts a file system")
def test_many_volumes_need_few_descriptors(whole: Path, tmp_path: Path) -> None:
    made = cut(whole, 20_001, tmp_path)
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)); "
    script += "from tests.manifests.test_volumes import check; from pathlib import Path; check(Path(sys.argv[1]))"
    subprocess.run([program("python3"), "-c", script, made[0]], check=True, cwd=Path(__file__).parents[2])


class Drive:
    """One drive, one medium at a time: an operator who changes sticks when asked."""

    def __init__(
        self, volumes: Sequence[Path], drive: Path, *, mistakes: Sequence[Callable[[Path], None]] = ()
    ) -> None:
        self.volumes = {path.name: path for path in volumes}
        self.drive, self.asked, self.problems = drive, list[str](), list[str]()
        self.mistakes = list(mistakes)

    def put(self, name: str) -> None:
        self.drive.mkdir(exist_ok=True)
        for old in self.drive.iterdir():
            assert str(old) not in open_paths(), "the medium is still in use, it could not be taken out"
            old.unlink()
        (self.drive / name).write_bytes(self.volumes[name].read_bytes())

    def __call__(self, wanted: str, folders: Sequence[Path], problem: str) -> Path | None:
        assert self.drive in folders
        self.asked.append(wanted)
        self.problems.append(problem)
        if self.mistakes:
            self.mistakes.pop(0)(self.drive)
        elif wanted in self.volumes:
            self.put(wanted)
        else:
            return None
        return self.drive


def open_paths() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(link.readlink()))
        except OSError:
            continue
    return found


def test_one_medium_after_the_other(volumes: list[Path], tmp_path: Path) -> None:
    drive = Drive(volumes, tmp_path / "drive")
    drive.put(volumes[0].name)
    assert check(drive.drive / volumes[0].name, Supply(feed=drive)) == make_manifest(FILES)
    assert drive.asked == [path.name for path in volumes[1:]]
    assert set(drive.problems) == {""}


def test_the_wrong_medium_is_said_and_asked_for_again(volumes: list[Path], tmp_path: Path) -> None:
    def wrong(drive: Path) -> None:
        (drive / volumes[1].name).write_bytes(b"short")

    drive = Drive(volumes, tmp_path / "drive", mistakes=[lambda _: None, wrong])
    drive.put(volumes[0].name)
    check(drive.drive / volumes[0].name, Supply(feed=drive))
    assert drive.asked[:3] == [volumes[1].name] * 3
    assert drive.problems[:3] == [
        "",
        f"{volumes[1].name} is in none of {drive.drive}",
        f"{drive.drive / volumes[1].name}: 5 bytes, expected {SIZE}",
    ]


def test_giving_up_is_an_integrity_error(volumes: list[Path], tmp_path: Path) -> None:
    drive = Drive(volumes[:3], tmp_path / "drive")
    drive.put(volumes[0].name)
    error = refusal(drive.drive / volumes[0].name, Supply(feed=drive))
    assert str(error) == "b.bundle.tar.004: missing, nobody brought it"
    assert error.hint == "run the same command again to go on; what was verified is kept"


def test_deep_needs_all_at_once(volumes: list[Path], tmp_path: Path) -> None:
    drive = Drive(volumes, tmp_path / "drive")
    drive.put(volumes[0].name)
    with pytest.raises(UsageError, match="--deep reads big files twice, which this medium can't give"):
        check(drive.drive / volumes[0].name, Supply(feed=drive), deep=True)


def test_damage_on_a_medium_that_came_later(volumes: list[Path], tmp_path: Path) -> None:
    with volumes[6].open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    drive = Drive(volumes, tmp_path / "drive")
    drive.put(volumes[0].name)
    size = volumes[6].stat().st_size
    message = str(refusal(drive.drive / volumes[0].name, Supply(feed=drive)))
    assert message.endswith(f": b.bundle.tar.007: header or padding changed at its byte {size - 1}, before the end")


class Pipe:
    """A pipe that gives at most a few bytes at a time, and can't be read again."""

    def __init__(self, data: bytes, step: int = 1000) -> None:
        self._stream, self._step = BytesIO(data), step

    def readinto(self, buffer: memoryview, /) -> int:
        return self._stream.readinto(buffer[: self._step])


def test_the_pipe(whole: Path) -> None:
    assert check(Path("-"), Supply(stream=Pipe(whole.read_bytes()))) == make_manifest(FILES)


def test_the_pipe_is_for_those_who_have_one() -> None:
    with pytest.raises(UsageError, match="a bundle can't be read from standard input here"):
        check(Path("-"))


def test_a_pipe_that_was_cut(whole: Path) -> None:
    data = whole.read_bytes()
    layout = tar_layout(make_manifest(FILES).encode(), make_manifest(FILES).files)
    for length in (layout.list_offset, layout.members[1].offset + 3, len(data) - 1):
        error = refusal(Path("-"), Supply(stream=Pipe(data[:length])))
        assert str(error) == f"standard input: ended after {length} bytes, expected {len(data)}"
    assert str(refusal(Path("-"), Supply(stream=Pipe(data[:600])))) == "standard input: truncated within manifest.json"
    error = refusal(Path("-"), Supply(stream=Pipe(data + b"\0")))
    assert str(error) == f"standard input: bytes after its end, expected {len(data)} bytes in all"


def test_what_is_left_out_of_a_pipe_is_checked_in_passing(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    layout = tar_layout(make_manifest(FILES).encode(), make_manifest(FILES).files)
    data[layout.members[1].header_offset] ^= 1
    with open_medium(Path("-"), Supply(stream=Pipe(bytes(data)))) as medium:
        medium.check_layout(parse_manifest(medium.manifest_bytes))
        words = f"header or padding changed at byte {layout.members[1].header_offset}, before "
        with pytest.raises(MediumError, match=words), medium.reader(layout.members[-1].entry):
            pass


def test_a_pipe_goes_one_way() -> None:
    source = StreamSource(Pipe(b"0123456789" * 20, step=3))
    assert source.peek(4, 6) == b"6789"
    view = memoryview(bytearray(4))
    assert source.read_into(view, 8) == 4
    assert bytes(view) == b"8901"
    with pytest.raises(AssertionError, match="a pipe can't be read again: at 12, asked for 11"):
        source.read_into(view, 11)


def test_parts_say_where_bytes_lie(volumes: list[Path]) -> None:
    source = VolumeSource(volumes[0], Supply())
    total = sum(path.stat().st_size for path in volumes)
    source.expect(total)
    parts = source.parts(SIZE - 10, SIZE + 20)
    assert [(part.path, part.offset, part.size) for part in parts] == [
        (volumes[0], SIZE - 10, 10),
        (volumes[1], 0, SIZE),
        (volumes[2], 0, 10),
    ]
    view = memoryview(bytearray(100))
    assert source.read_into(view, total - 30) == 30
    source.close()
