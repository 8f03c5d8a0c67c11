"""install.sh: what it runs, what it refuses to run, under every sh that this machine has."""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.contents.render import Subject, render_payload
from manifests.manifest import manifest_digest
from tests.factories import Key, make_key, unpack_bundle
from tests.factories_closed import (
    HOST_TARGET,
    PYTHON,
    ClosedBundle,
    Host,
    closed_files,
    copy_of,
    flip_bit,
    make_closed_bundle,
    program,
)
from tests.factories_python import ARCHIVE_PATH, member, python_archive, tar_gz

SHELLS = [words for words in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(words[0])]
MARKER_PYZ = b"import pathlib, sys; pathlib.Path(sys.argv[3]).mkdir(); print('planted')\n"


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """One of the shells that an operator may have as sh."""
    words: list[str] = request.param
    return words


@pytest.fixture
def kit(first: ClosedBundle, tmp_path: Path) -> Path:
    """A copy of the kit that a test may change."""
    return Path(shutil.copytree(first.kit, tmp_path / "kit"))


def script_of(bundle: ClosedBundle) -> Path:
    return bundle.kit / "install.sh"


def test_the_kit_installs(tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    done = host.run(*shell, script_of(first), "--kit", first.kit, first.tar, "--prefix", prefix, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] is True
    assert done.stderr.startswith(f"kit digest {first.kit_digest}\nsigned by release@example.com ")
    assert (prefix / "current/venv/bin/python").exists()


def test_options_reach_the_runtime(tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle) -> None:
    words: tuple[str | Path, ...] = (*shell, script_of(first), "--signatures", "2", "--kit", first.kit, first.tar)
    done = host.run(*words, "--python", host.python, "--prefix", tmp_path / "prefix")
    assert done.returncode == 4
    assert "the bundle has 1 of 2 trusted signatures" in done.stderr


@pytest.mark.parametrize("name", ["runtime.pyz", "allowed_signers"])
def test_a_changed_kit_is_not_executed(
    *, tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle, kit: Path, name: str
) -> None:
    prefix = tmp_path / "prefix"
    if name == "runtime.pyz":
        (kit / name).write_bytes(MARKER_PYZ)
    else:
        (kit / name).write_text(make_key(tmp_path / "mallory").allowed_signers.read_text())
    done = host.run(*shell, script_of(first), "--kit", kit, first.tar, "--prefix", prefix)
    assert done.returncode == 5
    assert f"error: {kit}/{name}: is not what {kit}/SHA256SUMS lists\nhint: get the kit again" in done.stderr
    assert "planted" not in done.stdout
    assert not prefix.exists()


@pytest.mark.parametrize("name", ["SHA256SUMS", "runtime.pyz", "allowed_signers"])
def test_an_incomplete_kit(tmp_path: Path, host: Host, first: ClosedBundle, kit: Path, name: str) -> None:
    (kit / name).unlink()
    done = host.run("sh", script_of(first), "--kit", kit, first.tar, "--prefix", tmp_path / "prefix")
    hint = "give the folder that came another way than the bundle: NAME-VERSION-TARGET.kit"
    assert (done.returncode, done.stderr) == (2, f"error: {kit}: not a kit, it has no {name}\nhint: {hint}\n")


@pytest.mark.parametrize("form", [program("tar"), "folder"])
def test_without_a_kit_nothing_runs_before_the_digest_was_compared(
    tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle, form: str
) -> None:
    medium = first.tar if form == "tar" else unpack_bundle(first.tar, tmp_path / "unpacked")
    prefix, digest = tmp_path / "prefix", manifest_digest(first.manifest.encode())
    words: tuple[str | Path, ...] = (*shell, script_of(first), medium, "--prefix", prefix, "--trust", first.trust)
    asked = host.run(*words)
    assert asked.returncode == 4
    assert asked.stderr == (
        f"manifest digest {digest}\n"
        "error: nothing was executed: compare this digest with the builder's, by telephone\n"
        f"hint: then: sh install.sh --expect {digest} {medium} --prefix {prefix} --trust {first.trust}\n"
    )
    wrong = host.run(*words, "--expect", "0" * 64)
    assert (wrong.returncode, wrong.stderr) == (
        4,
        f"error: the manifest digest is {digest}, expected {'0' * 64}\n",
    )
    assert not prefix.exists()
    done = host.run(*words, "--expect", digest)
    assert done.returncode == 0, done.stderr
    assert (prefix / "current").is_symlink()
    assert [path.name for path in host.home.iterdir()] == [], "its temporary folder is gone"


@pytest.mark.parametrize("form", [program("tar"), "folder"])
def test_a_planted_verifier_on_the_medium_is_never_executed(
    *, tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle, closed_key: Key, form: str
) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key)
    prefix = tmp_path / "prefix"
    if form == "folder":
        medium = unpack_bundle(bundle.tar, tmp_path / "unpacked")
        (medium / "bootstrap/runtime.pyz").write_bytes(MARKER_PYZ)
    else:
        medium = copy_of(bundle.tar, tmp_path / "copy")
        data = medium.read_bytes()
        medium.write_bytes(data.replace(b"#!/usr/bin/env python3\nPK", b"print('planted') #####\nPK", 1))
        assert medium.read_bytes() != data
    digest = manifest_digest(bundle.manifest.encode())
    with_digest = host.run(
        *shell, script_of(first), medium, "--prefix", prefix, "--trust", bundle.trust, "--expect", digest
    )
    assert with_digest.returncode == 5
    assert "error: bootstrap/runtime.pyz is not what the manifest lists\nhint: copy the bundle again" in (
        with_digest.stderr
    )
    with_kit = host.run(*shell, script_of(first), "--kit", bundle.kit, medium, "--prefix", prefix)
    assert with_kit.returncode == 5
    assert "bootstrap/runtime.pyz" in with_kit.stderr
    assert "planted" not in with_digest.stdout + with_kit.stdout
    assert not (prefix / "current").exists()


def test_a_manifest_that_is_a_link_is_refused(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    hostile = tmp_path / "hostile.bundle.tar"
    with tarfile.open(hostile, "w") as archive:
        link = tarfile.TarInfo("manifest.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("bootstrap/runtime.pyz"))
    done = host.run("sh", script_of(first), hostile, "--prefix", tmp_path / "p", "--trust", first.trust)
    assert (done.returncode, done.stderr) == (5, f"error: {hostile}: not a Sealift bundle, or truncated\n")


def test_something_that_is_no_bundle(tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 999)
    done = host.run(*shell, script_of(first), tmp_path / "junk", "--prefix", tmp_path / "p", "--trust", first.trust)
    assert (done.returncode, done.stderr) == (5, f"error: {tmp_path}/junk: not a Sealift bundle, or truncated\n")


def test_a_damaged_bundle_with_a_kit(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    tar = copy_of(first.tar, tmp_path / "copy")
    flip_bit(tar, tar.stat().st_size // 2)
    done = host.run("sh", script_of(first), "--kit", first.kit, tar, "--prefix", tmp_path / "prefix")
    assert done.returncode == 5
    assert "hint: copy the bundle again from its source" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no bundle was named"),
        (["BUNDLE"], "no --prefix was given"),
        (["/none", "--prefix", "p"], "/none: no such bundle"),
        (["--kit"], "--kit needs a value"),
        (["--signatures"], "--signatures needs a value"),
        (["BUNDLE", "BUNDLE"], "two bundles were named"),
        (["BUNDLE", "--prefix", "p"], "without --kit, --trust ALLOWED_SIGNERS is needed"),
        (["BUNDLE", "--prefix", "p", "--kit", "/none"], "/none: not a kit, it has no SHA256SUMS"),
    ],
)
def test_usage(shell: list[str], host: Host, first: ClosedBundle, words: list[str], message: str) -> None:
    given = [str(first.tar) if word == "BUNDLE" else word for word in words]
    done = host.run(*shell, script_of(first), *given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")


def test_help(shell: list[str], host: Host, first: ClosedBundle) -> None:
    done = host.run(*shell, script_of(first), "--help")
    assert done.returncode == 0
    assert "sh install.sh --kit KIT BUNDLE --prefix DIR" in done.stdout


TOOLS = (
    "sh",
    "sha256sum",
    "cut",
    "sed",
    "grep",
    "head",
    "cat",
    "tar",
    "gzip",
    "mktemp",
    "mkdir",
    "rmdir",
    "rm",
    "cp",
    "mv",
)


@pytest.fixture
def poor(tmp_path: Path, host: Host) -> Host:
    """A host with a few tools, and a Python that is too old."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(program(name))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")  # as an old one answers the question for its version
    (tools / "python3").chmod(0o755)
    return replace(host, path=str(tools))


def words_for(bundle: ClosedBundle, way: str) -> list[str | Path]:
    """Return the options for a way to trust."""
    if way == "kit":
        return ["--kit", bundle.kit]
    return ["--expect", manifest_digest(bundle.manifest.encode()), "--trust", bundle.trust]


@pytest.mark.parametrize("way", ["kit", "expect"])
def test_a_host_without_python(tmp_path: Path, poor: Host, first: ClosedBundle, way: str) -> None:
    words = words_for(first, way)
    done = poor.run(program("sh"), script_of(first), *words, first.tar, "--prefix", tmp_path / "p")
    assert done.returncode == 6
    assert done.stderr.endswith(
        "error: this host has no Python 3.11 or newer, and the bundle carries none\n"
        f"hint: install python{PYTHON} from the site's own packages, or have the bundle built with a [python] table\n"
    )
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("form", "way"), [("tar", "kit"), ("folder", "expect")])
def test_a_host_without_python_uses_the_carried_one(
    *, tmp_path: Path, shell: list[str], poor: Host, carrying: ClosedBundle, form: str, way: str
) -> None:
    medium = unpack_bundle(carrying.tar, tmp_path / "unpacked") if form == "folder" else carrying.tar
    prefix = tmp_path / "prefix"
    words = words_for(carrying, way)
    done = poor.run(program(shell[0]), *shell[1:], script_of(carrying), *words, medium, "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    assert "this host has no Python 3.11 or newer: using the one that the bundle carries\n" in done.stderr
    (folder,) = (prefix / "python").iterdir()
    assert (prefix / "current/venv/bin/python").readlink() == folder / f"bin/python{PYTHON}"
    assert list(poor.home.iterdir()) == [], "its temporary folder is gone"
    python = prefix / "current/venv/bin/python"
    verified = poor.run(python, "-I", carrying.pyz, "verify", "--prefix", prefix, "--trust", carrying.trust)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def planted(marker: Path) -> bytes:
    """Return an archive whose program leaves a marker, no longer than the real one, which it is filled up to."""
    script = f"#!/bin/sh\n: > '{marker}'\nexit 1\n".encode()
    data = tar_gz(iter([(member(f"python/bin/python{PYTHON}", mode=0o755), script)]))
    return data.ljust(len(python_archive()), b"\0")


def retarred(tar: Path, change: Callable[[tarfile.TarInfo, bytes], Iterator[tuple[tarfile.TarInfo, bytes]]]) -> None:
    """Write a bundle's tar anew with other members in place of the archive."""
    with tarfile.open(tar) as source:
        members = [(info, (source.extractfile(info) or io.BytesIO()).read()) for info in source]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as sink:
        for info, data in members:
            for new, content in change(info, data) if info.name == ARCHIVE_PATH else [(info, data)]:
                new.size = len(content)
                sink.addfile(new, io.BytesIO(content))


def swap(archive: Path, evil: bytes) -> None:
    archive.write_bytes(evil)


def append(archive: Path, evil: bytes) -> None:
    archive.write_bytes(archive.read_bytes() + evil)


def link(archive: Path, evil: bytes) -> None:
    elsewhere = archive.parents[1].with_name("elsewhere.tar.gz")
    elsewhere.write_bytes(evil)
    archive.unlink()
    archive.symlink_to(elsewhere)


def take_away(archive: Path, _evil: bytes) -> None:
    archive.unlink()


@pytest.mark.parametrize("way", ["kit", "expect"])
@pytest.mark.parametrize("change", [swap, append, link, take_away])
def test_a_planted_interpreter_in_a_folder_is_never_executed(
    *,
    tmp_path: Path,
    poor: Host,
    host: Host,
    carrying: ClosedBundle,
    change: Callable[[Path, bytes], None],
    way: str,
) -> None:
    medium, marker, prefix = (
        unpack_bundle(carrying.tar, tmp_path / "unpacked"),
        tmp_path / "marker",
        tmp_path / "prefix",
    )
    change(medium / ARCHIVE_PATH, planted(marker))
    for shell in SHELLS if change is swap else SHELLS[:1]:
        words = [program(shell[0]), *shell[1:], script_of(carrying), *words_for(carrying, way), medium]
        done = poor.run(*words, "--prefix", prefix)
        assert done.returncode == 5
        assert f"bootstrap/{Path(ARCHIVE_PATH).name} is " in done.stderr
        assert "hint: copy the bundle again from its source\n" in done.stderr
        assert not marker.exists()
        assert not prefix.exists()
    with_python = host.run("sh", script_of(carrying), *words_for(carrying, way), medium, "--prefix", prefix)
    assert with_python.returncode == 5, "the runtime refuses it as well"
    assert ARCHIVE_PATH in with_python.stderr
    assert not marker.exists()


def twin(info: tarfile.TarInfo) -> tarfile.TarInfo:
    return tarfile.TarInfo(info.name)


@pytest.mark.parametrize("way", ["kit", "expect"])
@pytest.mark.parametrize("trick", ["swapped", "appended", "link", "before", "after", "link before", "gone"])
def test_a_planted_interpreter_in_a_tar_is_never_executed(
    *,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    poor: Host,
    host: Host,
    carrying: ClosedBundle,
    trick: str,
    way: str,
) -> None:
    tar, marker, prefix = copy_of(carrying.tar, tmp_path / "copy"), tmp_path / "marker", tmp_path / "prefix"
    evil, elsewhere = planted(marker), tmp_path_factory.mktemp("e") / "e.gz"  # short enough for a link in a tar
    elsewhere.write_bytes(evil)

    def change(info: tarfile.TarInfo, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        pointing = tarfile.TarInfo(info.name)
        pointing.type, pointing.linkname = tarfile.SYMTYPE, str(elsewhere)
        tricks: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
            "swapped": [(twin(info), evil)],
            "appended": [(twin(info), data + evil)],
            "link": [(pointing, b"")],
            "before": [(twin(info), evil), (info, data)],
            "after": [(info, data), (twin(info), evil)],
            "link before": [(pointing, b""), (twin(info), evil)],
            "gone": [],
        }
        yield from tricks[trick]

    retarred(tar, change)
    for shell in SHELLS if trick == "swapped" else SHELLS[:1]:
        words = [program(shell[0]), *shell[1:], script_of(carrying), *words_for(carrying, way), tar]
        done = poor.run(*words, "--prefix", prefix)
        assert done.returncode == 5
        assert f"bootstrap/{Path(ARCHIVE_PATH).name} is " in done.stderr
        assert not marker.exists()
        assert not prefix.exists()
    with_python = host.run("sh", script_of(carrying), *words_for(carrying, way), tar, "--prefix", prefix)
    assert with_python.returncode == 5
    assert not marker.exists()
    assert elsewhere.read_bytes() == evil, "nothing was written through a link"


def test_the_planted_interpreter_would_leave_its_marker(tmp_path: Path, host: Host) -> None:
    (tmp_path / "a.tar.gz").write_bytes(planted(tmp_path / "marker"))
    assert len(planted(tmp_path / "marker")) == len(python_archive())
    assert host.run("tar", "-xzf", tmp_path / "a.tar.gz", "-C", tmp_path).returncode in {0, 2}
    host.run(tmp_path / f"python/bin/python{PYTHON}")
    assert (tmp_path / "marker").exists()


def test_a_kit_of_another_bundle_is_told(
    tmp_path: Path, host: Host, first: ClosedBundle, carrying: ClosedBundle
) -> None:
    done = host.run("sh", script_of(first), "--kit", first.kit, carrying.tar, "--prefix", tmp_path / "p")
    assert done.returncode == 5
    assert (
        f"error: {carrying.tar}: bootstrap/{Path(ARCHIVE_PATH).name} is not what the kit's SHA256SUMS lists\n"
        "hint: this kit was made with another bundle: get the kit of this one\n"
    ) in done.stderr
    assert not (tmp_path / "p").exists()


def test_a_prefix_with_signers_of_its_own_needs_no_trust_file(
    *, tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle, second: ClosedBundle, closed_key: Key
) -> None:
    prefix = tmp_path / "prefix"
    fingerprint = closed_key.public.fingerprint
    pinned = host.runtime(first.pyz, "trust", "init", first.trust, "--prefix", prefix, "--fingerprint", fingerprint)
    assert pinned.returncode == 0, pinned.stderr
    for bundle in (first, second):
        words = ("--expect", manifest_digest(bundle.manifest.encode()), bundle.tar, "--prefix", prefix)
        done = host.run(*shell, script_of(bundle), *words)
        assert done.returncode == 0, done.stderr
    assert (prefix / "current").readlink().name.startswith("2.0.0-")


def test_spaces_in_every_path(tmp_path: Path, shell: list[str], host: Host, first: ClosedBundle) -> None:
    folder = tmp_path / "with spaces 'and' \"quotes\""
    kit = shutil.copytree(first.kit, folder / "the kit")
    tar = copy_of(first.tar, folder / "the medium")
    done = host.run(*shell, kit / "install.sh", "--kit", kit, tar, "--prefix", folder / "the prefix")
    assert done.returncode == 0, done.stderr
    assert host.run(folder / "the prefix/current/venv/bin/runtime", "--version").returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(first: ClosedBundle) -> None:
    done = subprocess.run(
        [program("shellcheck"), "--shell=sh", str(script_of(first))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_script_is_the_same_for_bundle_and_kit(first: ClosedBundle) -> None:
    subject = Subject(name="demo", version="1.0.0", target=HOST_TARGET, models=())
    assert script_of(first).read_bytes() == render_payload(subject)["bootstrap/install.sh"]
    assert script_of(first).read_bytes() == closed_files("six")["bootstrap/install.sh"]
