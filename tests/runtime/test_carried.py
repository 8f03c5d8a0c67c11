"""The interpreter that a bundle carries: unpacked, compared with its archive both ways, healed, given up."""

import json
import shutil
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.errors import HostError, IntegrityError
from manifests.files import write_atomic
from manifests.manifest import Manifest
from runtime.carried import carried_folder, check_carried, heal_carried, made_of_carried, release_interpreter
from runtime.layout import Prefix, Release
from runtime.preflight import preflight
from tests.factories import Key, make_entry, make_manifest, tree_of
from tests.factories_closed import PYTHON, ClosedBundle, Host, closed_files, make_closed_bundle, make_host
from tests.factories_python import ARCHIVE_PATH, OWN_TARGET, VERSION, member, tar_gz, with_python

BYTES = b"print('module')\n"


def small_archive() -> bytes:
    """Return an archive with one of everything."""
    members = [
        (member(f"python/bin/python{PYTHON}", mode=0o777), b"program"),
        (member("python/bin/python3", link=f"python{PYTHON}"), b""),
        (member("python/lib/package/module.py"), BYTES),
        (member("python/lib/compiled/module.py"), BYTES),
        (member("python/lib/compiled/__pycache__/module.pyc"), b"bytecode"),
        (member("python/lib/copy", link="python/lib/package/module.py", kind=tarfile.LNKTYPE), b""),
        (member("python/empty", kind=tarfile.DIRTYPE, mode=0o777), b""),
    ]
    return tar_gz(iter(members))


class Scene:
    """An unpacked interpreter, and the archive that it came from."""

    def __init__(self, folder: Path) -> None:
        self.archive, self.folder = folder / "archive.tar.gz", folder / "python/0123"
        self.archive.write_bytes(small_archive())
        self.entry = make_entry(ARCHIVE_PATH, small_archive())
        assert self.heal() == ()

    def heal(self) -> tuple[str, ...]:
        return heal_carried(self.folder, self.archive, self.entry)

    def check(self) -> list[str]:
        found = check_carried(self.folder, self.archive, self.entry)
        return [line.removeprefix(f"{self.folder}/") for line in found]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_is_unpacked(scene: Scene) -> None:
    assert tree_of(scene.folder) == {
        f"bin/python{PYTHON}": b"program",
        "bin/python3": b"program",
        "lib/package/module.py": BYTES,
        "lib/package/__pycache__": b"",
        "lib/compiled/module.py": BYTES,
        "lib/compiled/__pycache__/module.pyc": b"bytecode",
        "lib/copy": BYTES,
    }
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in scene.folder.rglob("*") if not path.is_symlink()}
    assert modes["empty"] == modes["bin"] == 0o755
    assert modes[f"python{PYTHON}"] == 0o555
    assert modes["copy"] == modes["module.pyc"] == 0o444
    assert (scene.folder / "bin/python3").readlink() == Path(f"python{PYTHON}")
    assert (scene.folder / "lib/compiled/module.py").stat().st_mtime == 1_700_000_000, "bytecode goes by it"
    assert [path.name for path in scene.folder.parent.iterdir()] == ["0123"]
    assert scene.check() == []


def change_program(folder: Path) -> str:
    write_atomic(folder / f"bin/python{PYTHON}", b"PROGRAM", mode=0o555)
    return f"bin/python{PYTHON}: content changed"


def append(folder: Path) -> str:
    write_atomic(folder / "lib/package/module.py", BYTES + b"#", mode=0o444)
    return "lib/package/module.py: content changed\nlib/copy: can't be compared with lib/package/module.py"


def change_copy(folder: Path) -> str:
    write_atomic(folder / "lib/copy", b"other", mode=0o444)
    return "lib/copy: content changed"


def remove(folder: Path) -> str:
    (folder / "lib/compiled/module.py").unlink()
    return "lib/compiled/module.py: missing"


def add_module(folder: Path) -> str:
    (folder / "lib/package/planted.py").write_bytes(b"evil")
    return "lib/package/planted.py: not in the interpreter's archive"


def add_folder(folder: Path) -> str:
    (folder / "lib/site-packages/evil").mkdir(parents=True)
    return "lib/site-packages: not in the interpreter's archive"


def add_bytecode(folder: Path) -> str:
    (folder / "lib/package/__pycache__").unlink()
    (folder / "lib/package/__pycache__").mkdir()
    (folder / "lib/package/__pycache__/module.pyc").write_bytes(b"evil")
    return "lib/package/__pycache__: not a regular file"


def redirect(folder: Path) -> str:
    (folder / "bin/python3").unlink()
    (folder / "bin/python3").symlink_to("/bin/sh")
    return f"bin/python3: a link to /bin/sh, expected python{PYTHON}"


def link_program(folder: Path) -> str:
    shutil.copy(folder / f"bin/python{PYTHON}", folder.parent / "same")
    (folder / f"bin/python{PYTHON}").unlink()
    (folder / f"bin/python{PYTHON}").symlink_to(folder.parent / "same")
    return f"bin/python{PYTHON}: not a regular file"


def link_folder(folder: Path) -> str:
    shutil.move(folder / "lib/package", folder.parent / "package")
    (folder / "lib/package").symlink_to(folder.parent / "package")
    return (
        "lib/package: not a folder\nlib/package/module.py: missing\n"
        "lib/copy: can't be compared with lib/package/module.py\nlib/package/__pycache__: missing"
    )


def file_for_folder(folder: Path) -> str:
    (folder / "empty").rmdir()
    (folder / "empty").write_bytes(b"")
    return "empty: not a folder"


def folder_for_file(folder: Path) -> str:
    (folder / "lib/copy").unlink()
    (folder / "lib/copy").mkdir()
    (folder / "lib/copy/x").write_bytes(b"")
    return "lib/copy: not a regular file"


def open_file(folder: Path) -> str:
    (folder / "lib/copy").chmod(0o666)
    return "lib/copy: mode 0666, expected 0444"


def open_folder(folder: Path) -> str:
    (folder / "lib").chmod(0o777)
    return "lib: mode 0777, expected 0755"


def open_and_change(folder: Path) -> str:
    (folder / "lib").chmod(0o777)
    return f"{change_copy(folder)}\nlib: mode 0777, expected 0755"


CHANGES = [
    *(change_program, append, change_copy, remove, add_module, add_folder, add_bytecode, redirect, link_program),
    *(link_folder, file_for_folder, folder_for_file, open_file, open_folder, open_and_change),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_healed(scene: Scene, change: object) -> None:
    before = tree_of(scene.folder)
    assert callable(change)
    problems = change(scene.folder).splitlines()
    assert sorted(scene.check()) == sorted(problems)
    healed = scene.heal()
    assert sorted(line.removeprefix(f"{scene.folder}/") for line in healed) == sorted(problems)
    assert scene.check() == []
    assert tree_of(scene.folder) == before
    assert list(scene.folder.rglob(".*")) == []


def test_many_changes_at_once(scene: Scene) -> None:
    before = tree_of(scene.folder)
    problems = [change_program(scene.folder), remove(scene.folder), add_module(scene.folder), open_folder(scene.folder)]
    assert sorted(scene.check()) == sorted(problems)
    assert len(scene.heal()) == 4
    assert tree_of(scene.folder) == before


def test_healing_leaves_what_is_right_alone(scene: Scene) -> None:
    right = (scene.folder / "lib/compiled/module.py").stat()
    change_program(scene.folder)
    scene.heal()
    assert (scene.folder / "lib/compiled/module.py").stat().st_ino == right.st_ino


def test_an_archive_that_is_not_the_signed_one_is_not_unpacked(scene: Scene) -> None:
    shutil.rmtree(scene.folder)
    scene.archive.write_bytes(scene.archive.read_bytes() + b"\0")
    with pytest.raises(IntegrityError) as caught:
        scene.heal()
    assert caught.value.message == f"{scene.archive}: is not what the manifest lists"
    assert list(scene.folder.parent.iterdir()) == []


def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path) -> None:
    data = tar_gz(iter([(member("python/lib/x"), b"x"), (member("python/up", link="../../../evil"), b"")]))
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"'python/up' is a link out of python/"):
        heal_carried(tmp_path / "python/0123", tmp_path / "a.tar.gz", make_entry(ARCHIVE_PATH, data))
    assert list((tmp_path / "python").iterdir()) == []


def test_what_an_interrupted_unpacking_left_is_no_obstacle(scene: Scene) -> None:
    before = tree_of(scene.folder)
    scene.folder.rename(scene.folder.with_name(".0123.partial"))
    (scene.folder.with_name(".0123.partial") / "junk").write_bytes(b"junk")
    scene.folder.symlink_to("/etc")
    assert scene.heal() == ()
    assert tree_of(scene.folder) == before
    assert [path.name for path in scene.folder.parent.iterdir()] == ["0123"]


def test_an_interpreter_that_does_not_run_here(tmp_path: Path) -> None:
    manifest = make_manifest({ARCHIVE_PATH: small_archive()}, target=OWN_TARGET)
    release = Release(path=tmp_path / "releases/1-0123")
    (release.path / "bootstrap").mkdir(parents=True)
    (release.path / ARCHIVE_PATH).write_bytes(small_archive())
    with pytest.raises(HostError) as caught:
        release_interpreter(Prefix(path=tmp_path), release, manifest, None)
    assert caught.value.message == (
        f"the interpreter that the bundle carries (CPython {VERSION}) does not run on this host"
    )
    assert caught.value.hint == f"name another one: --python /path/to/python{PYTHON}"


def test_which_releases_are_made_of_it(tmp_path: Path) -> None:
    manifest = make_manifest({ARCHIVE_PATH: small_archive()}, target=OWN_TARGET)
    (entry,) = manifest.files
    release = Release(path=tmp_path / "releases/1-0123")
    release.path.mkdir(parents=True)
    program = carried_folder(Prefix(path=tmp_path), entry) / f"bin/python{PYTHON}"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/sh")
    assert made_of_carried(release, manifest, str(program)), "whatever it links to"
    assert made_of_carried(release, manifest, None)
    assert not made_of_carried(release, manifest, f"/usr/bin/python{PYTHON}")
    assert not made_of_carried(release, manifest, f"/other{program}")
    assert not made_of_carried(release, make_manifest({"app/b": b""}), None)


# With a bundle: what the commands do.


@pytest.fixture(scope="session")
def carried_prefix(tmp_path_factory: pytest.TempPathFactory, carrying: ClosedBundle) -> Path:
    """A prefix where that is live; never write to it."""
    folder = tmp_path_factory.mktemp("carried")
    host = make_host(folder / "home")
    words = ("install", carrying.tar, "--prefix", folder / "prefix", "--trust", carrying.trust)
    done = host.runtime(carrying.pyz, *words)
    assert done.returncode == 0, done.stderr
    return folder / "prefix"


def interpreter_of(prefix: Path) -> Path:
    (folder,) = (prefix / "python").iterdir()
    return folder


def verify(host: Host, bundle: ClosedBundle, prefix: Path) -> tuple[int, dict[str, list[str]]]:
    done = host.runtime(bundle.pyz, "verify", "--prefix", prefix, "--trust", bundle.trust, "--json")
    return done.returncode, {section["name"]: section["problems"] for section in json.loads(done.stdout)["sections"]}


def install(host: Host, bundle: ClosedBundle, prefix: Path, *options: str | Path) -> None:
    words = ("install", bundle.tar, "--prefix", prefix, "--trust", bundle.trust, *options)
    done = host.runtime(bundle.pyz, *words)
    assert done.returncode == 0, done.stderr


def test_the_environment_is_made_of_the_carried_interpreter(
    host: Host, carrying: ClosedBundle, carried_prefix: Path
) -> None:
    folder = interpreter_of(carried_prefix)
    assert folder.name == next(f.sha256 for f in carrying.manifest.files if f.path == ARCHIVE_PATH)[:12]
    python = carried_prefix / "current/venv/bin/python"
    assert python.readlink() == folder / f"bin/python{PYTHON}"
    asked = host.run(python, "-c", "import six, sys, sqlite3; print(sys.base_prefix, six.__version__)")
    assert asked.stdout == f"{folder} 1.17.0\n", asked.stderr
    assert verify(host, carrying, carried_prefix) == (
        0,
        {"signature": [], "files": [], "interpreter": [], "venv": [], "host": []},
    ), "running it left no bytecode"


def test_running_it_writes_no_bytecode_even_for_root(host: Host, carrying: ClosedBundle, carried_prefix: Path) -> None:
    assert host.run(interpreter_of(carried_prefix) / f"bin/python{PYTHON}", "-c", "import json, csv").returncode == 0
    assert verify(host, carrying, carried_prefix)[0] == 0


@pytest.mark.slow
def test_a_changed_interpreter_is_found_never_executed_and_repaired(
    tmp_path: Path, host: Host, carrying: ClosedBundle
) -> None:
    prefix, marker = tmp_path / "prefix", tmp_path / "executed"
    install(host, carrying, prefix)
    program = interpreter_of(prefix) / f"bin/python{PYTHON}"
    before = program.read_bytes()
    write_atomic(program, f'#!/bin/sh\n: > {marker}\nexec {host.python} "$@"\n'.encode(), mode=0o555)
    code, problems = verify(host, carrying, prefix)
    assert code == 5
    assert problems["interpreter"] == [f"{program}: content changed"]
    assert problems["host"] == ["nothing was executed: the interpreter is not what was signed"]
    assert not marker.exists()
    done = host.runtime(carrying.pyz, "repair", "--prefix", prefix, "--trust", carrying.trust)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert program.read_bytes() == before
    assert verify(host, carrying, prefix)[0] == 0


def test_the_operators_own_choice_of_python(tmp_path: Path, host: Host, carrying: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    install(host, carrying, prefix, "--python", host.python)
    assert (prefix / "current/venv/bin/python").readlink() == host.python
    assert not (prefix / "python").exists()
    done = host.runtime(carrying.pyz, "verify", "--prefix", prefix, "--trust", carrying.trust, "--json")
    (section,) = [row for row in json.loads(done.stdout)["sections"] if row["name"] == "interpreter"]
    assert section["checked"] == f"the operator's choice, {host.python}, whose files nothing here can vouch for"
    assert done.returncode == 0


@pytest.mark.slow
def test_releases_share_it_and_gc_removes_it_with_the_last(
    tmp_path: Path, host: Host, closed_key: Key, carrying: ClosedBundle
) -> None:
    prefix = tmp_path / "prefix"
    install(host, carrying, prefix)
    folder = interpreter_of(prefix)
    inode = folder.stat().st_ino
    numbers = iter(range(1767323099, 1767323110))

    def later(version: str, *, carried: bool) -> ClosedBundle:
        files = closed_files("six", target=OWN_TARGET, version=version)
        files = with_python(files) if carried else files
        return make_closed_bundle(
            tmp_path / version, closed_key, files=files, version=version, sequence=next(numbers), target=OWN_TARGET
        )

    install(host, later("2.0.0", carried=True), prefix)
    assert interpreter_of(prefix).stat().st_ino == inode
    (prefix / "python/.bootstrap.abc123").mkdir()
    (prefix / "python/operator's").mkdir()
    words = ("gc", "--prefix", prefix)
    assert host.runtime(carrying.pyz, *words).returncode == 0
    assert sorted(path.name for path in (prefix / "python").iterdir()) == [folder.name, "operator's"]
    for version in ("3.0.0", "4.0.0"):
        install(host, later(version, carried=False), prefix)
    done = host.runtime(carrying.pyz, *words, "--json")
    assert json.loads(done.stdout)["freed"] > 20_000_000
    assert [path.name for path in (prefix / "python").iterdir()] == ["operator's"]


@pytest.mark.slow
def test_uninstall_leaves_nothing_of_it(tmp_path: Path, host: Host, carrying: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    install(host, carrying, prefix)
    done = host.run(prefix / "current/venv/bin/runtime", "uninstall", "--prefix", prefix, "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)["left"]) == (0, []), done.stderr
    assert not prefix.exists()


def test_preflight_needs_no_python_of_the_host(tmp_path: Path, carrying: ClosedBundle) -> None:
    def rows(manifest: Manifest) -> dict[str, tuple[str, str]]:
        found = preflight(manifest, Prefix(path=tmp_path / "p"))
        return {row.name: (row.verdict, row.found) for row in found if row.name in {"python", "platform"}}

    none_here = replace(OWN_TARGET, python="3.99")
    assert rows(replace(carrying.manifest, target=none_here)) == {
        "python": ("ok", f"CPython {VERSION}, carried by the bundle")
    }
    files = tuple(entry for entry in carrying.manifest.files if entry.path != ARCHIVE_PATH)
    assert rows(replace(carrying.manifest, target=none_here, files=files)) == {"python": ("failed", "none")}
    strange = replace(OWN_TARGET, platform="riscv64-manylinux_2_39")
    assert rows(replace(carrying.manifest, target=strange))["platform"][0] == "failed"
