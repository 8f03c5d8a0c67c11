"""install.sh: what it runs, what it refuses to run, under every sh that this machine has."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.render import Subject, render_payload
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
    assert (done.returncode, done.stderr) == (2, f"error: {kit}: not a kit, it has no {name}\n")


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
    import tarfile  # noqa: PLC0415 # builds the hostile tar of this test alone

    hostile = tmp_path / "hostile.bundle.tar"
    with tarfile.open(hostile, "w") as archive:
        link = tarfile.TarInfo("manifest.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("bootstrap/runtime.pyz"))
    done = host.run("sh", script_of(first), hostile, "--prefix", tmp_path / "p", "--trust", first.trust)
    assert (done.returncode, done.stderr) == (5, f"error: {hostile}: manifest.json is not a regular file\n")


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


def test_a_host_without_python(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "sha256sum", "cut", "sed", "grep", "tar", "mktemp", "rm", "cp", "mv"):
        (tools / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is missing"))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")  # as an old one answers the question for its version
    (tools / "python3").chmod(0o755)
    poor = replace(host, path=str(tools))
    done = poor.run(tools / "sh", script_of(first), "--kit", first.kit, first.tar, "--prefix", tmp_path / "p")
    assert (done.returncode, done.stderr) == (
        6,
        f"error: this host has no Python 3.11 or newer\nhint: install python{PYTHON} from the site's own packages\n",
    )


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
