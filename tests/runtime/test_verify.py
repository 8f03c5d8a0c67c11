"""Verifying a bundle on its medium, and an installed release: what each depth finds, whose trust it was."""

import json
import os
import shlex
import shutil
import string
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.contents.render import Subject, render_payload
from manifests.manifest import ModelEntry
from tests.factories import Key, make_bundle, make_key, sign_slot, unpack_bundle, write_bundle
from tests.factories_closed import (
    BIG_PATH,
    BIG_SIZE,
    HOST_TARGET,
    ClosedBundle,
    Host,
    copy_of,
    flip_bit,
    make_closed_bundle,
    program,
)

CONFIG = "docs/INSTALL.md"


@pytest.fixture
def prefix(installed: Path, tmp_path: Path) -> Path:
    """A copy of the prefix, hard links and times kept, that a test may change."""
    subprocess.run([program("cp"), "-a", str(installed), str(tmp_path / "prefix")], check=True)
    return tmp_path / "prefix"


def verify(host: Host, bundle: ClosedBundle, prefix: Path, *options: str | Path) -> tuple[int, dict[str, list[str]]]:
    """Return the exit code, and the problems of each section."""
    done = host.runtime(bundle.pyz, "verify", "--prefix", prefix, "--json", *options)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode
    return done.returncode, {section["name"]: section["problems"] for section in report["sections"]}


def test_a_good_release(installed: Path, first: ClosedBundle, host: Host) -> None:
    done = host.runtime(first.pyz, "verify", "--prefix", installed, "--trust", first.trust)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    name = (installed / "current").readlink().name
    assert lines[0] == f"{name}: good, trust from {first.trust}"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["ok", "signature"],
        ["ok", "files"],
        ["ok", "venv"],
        ["ok", "host"],
    ], "no models, so nobody asks any"
    assert lines[2].split("files", 1)[1].strip().startswith(f"{len(first.manifest.files)} files, by digest")


def test_without_trust_the_report_says_whose_it_was(installed: Path, first: ClosedBundle, host: Host) -> None:
    report = json.loads(host.runtime(first.pyz, "verify", "--prefix", installed, "--json").stdout)
    assert report["trust"] == "the prefix itself (no --trust was given)"
    assert report["digest"].startswith(report["release"].split("-")[1])


def test_quick_asks_neither_digests_nor_the_venv(installed: Path, first: ClosedBundle, host: Host) -> None:
    code, sections = verify(host, first, installed, "--quick")
    assert (code, sections) == (0, {"signature": [], "files": [], "host": []})


def change_content(path: Path) -> None:
    """Flip a bit and put everything but the change time back, as a rotten disk would."""
    status = path.stat()
    path.chmod(0o644)
    flip_bit(path, 3)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path) -> None:
    path.chmod(0o644)
    with path.open("ab") as stream:
        stream.write(b"x")
    path.chmod(0o444)


def to_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def test_what_each_depth_finds(tmp_path: Path, first: ClosedBundle, host: Host) -> None:
    prefix = tmp_path / "prefix"
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust, "--no-smoke")
    assert done.returncode == 0, done.stderr
    release = (prefix / "current").resolve()
    change_content(release / "docs/INSTALL.md")
    append(release / "config/offline.env")
    (release / "docs/SHA256SUMS").chmod(0o644)
    (release / "bootstrap/install.sh").unlink()
    (release / "docs/more").write_bytes(b"")
    sizes = {entry.path: entry.size for entry in first.manifest.files}
    size = sizes["config/offline.env"]
    listing = [
        "bootstrap/install.sh: missing",
        "docs/more: not in the manifest",
        f"config/offline.env: {size + 1} bytes, expected {size}",
        "docs/SHA256SUMS: mode 0644, expected 0444",
    ]
    code, sections = verify(host, first, prefix, "--quick")
    assert code == 5
    assert sections["files"] == [*listing, "config/offline.env: size, time or inode changed since the install"]
    code, sections = verify(host, first, prefix)
    assert code == 5
    assert sections["files"][:4] == listing
    assert [problem.split(" ")[:3] for problem in sections["files"][4:]] == [["docs/INSTALL.md:", "expected", "sha256"]]


def test_a_file_replaced_by_a_link_is_found(prefix: Path, first: ClosedBundle, host: Host) -> None:
    to_link(prefix / "current" / CONFIG)
    code, sections = verify(host, first, prefix)
    assert code == 5
    assert "docs/elsewhere: not in the manifest" in sections["files"]
    assert any(problem.startswith(f"{CONFIG}: expected sha256") for problem in sections["files"])
    assert any("is a link or not a regular file" in problem for problem in sections["files"])


def test_a_stranger_s_trust_is_not_enough(tmp_path: Path, installed: Path, first: ClosedBundle, host: Host) -> None:
    stranger = make_key(tmp_path / "stranger")
    code, sections = verify(host, first, installed, "--trust", stranger.allowed_signers)
    assert code == 4
    assert sections["files"] == sections["venv"] == sections["host"] == []
    assert "is not among the allowed signers" in sections["signature"][0]


def test_the_gravest_finding_decides(tmp_path: Path, prefix: Path, first: ClosedBundle, host: Host) -> None:
    change_content(prefix / "current" / CONFIG)
    stranger = make_key(tmp_path / "stranger")
    code, sections = verify(host, first, prefix, "--trust", stranger.allowed_signers)
    assert code == 4
    assert sections["files"], "every section ran"


def test_a_venv_that_was_changed(prefix: Path, first: ClosedBundle, host: Host) -> None:
    module = next((prefix / "current/venv/lib").glob("python3*/site-packages/six.py"))
    append(module)
    code, sections = verify(host, first, prefix)
    assert code == 5
    assert sections["venv"] == [f"venv/{module.relative_to(prefix / 'current/venv')}: content changed"]


def test_a_changed_manifest_is_named(prefix: Path, first: ClosedBundle, host: Host) -> None:
    (prefix / "current/manifest.json").chmod(0o644)
    flip_bit((prefix / "current/manifest.json").resolve(), 700)
    done = host.runtime(first.pyz, "verify", "--prefix", prefix)
    assert done.returncode == 5
    assert "manifest.json: does not have the digest that the release is named by" in done.stderr


def test_deep_reads_whole_files_too(chunked: ClosedBundle, host: Host) -> None:
    done = host.runtime(chunked.pyz, "verify", chunked.tar, "--trust", chunked.trust, "--deep", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bundle"] == chunked.manifest.stem
    assert report["files"] == len(chunked.manifest.files)
    assert report["size"] == chunked.manifest.payload_size > BIG_SIZE
    assert report["signers"][0].startswith("release@example.com SHA256:")


def test_a_wrong_whole_file_digest_is_found_by_deep_alone(
    tmp_path: Path, chunked: ClosedBundle, host: Host, closed_key: Key
) -> None:
    files = {BIG_PATH: BIG_SIZE}
    good = make_bundle(tmp_path, files, key=closed_key)
    entry = next(entry for entry in chunked.manifest.files if entry.path == BIG_PATH)
    manifest = replace(chunked.manifest, files=(replace(entry, sha256="0" * 64),))
    write_bundle(good, manifest, files, sign_slot(manifest.encode(), closed_key))
    assert host.runtime(chunked.pyz, "verify", good, "--trust", chunked.trust).returncode == 0
    deep = host.runtime(chunked.pyz, "verify", good, "--trust", chunked.trust, "--deep")
    assert deep.returncode == 5
    assert f"{BIG_PATH}: expected sha256 {'0' * 64}, got {entry.sha256} for the whole file" in deep.stderr


def test_a_bundle_as_a_folder(tmp_path: Path, first: ClosedBundle, host: Host) -> None:
    folder = unpack_bundle(first.tar, tmp_path / "unpacked")
    assert host.runtime(first.pyz, "verify", folder, "--trust", first.trust).returncode == 0
    (folder / "docs/extra").write_bytes(b"")
    done = host.runtime(first.pyz, "verify", folder, "--trust", first.trust)
    assert (done.returncode, "docs/extra: not in the manifest" in done.stderr) == (5, True)


def test_a_bundle_s_damage_is_listed_completely(tmp_path: Path, first: ClosedBundle, host: Host) -> None:
    tar = copy_of(first.tar, tmp_path / "copy")
    size = tar.stat().st_size
    flip_bit(tar, size - 1024 - 600)  # the last file's content
    flip_bit(tar, size // 2)
    done = host.runtime(first.pyz, "verify", tar, "--trust", first.trust)
    assert done.returncode == 5
    assert f"error: {tar}: 2 problems:\n  " in done.stderr


@pytest.mark.parametrize("words", [[], ["BUNDLE", "--prefix", "DIR"]])
def test_verify_wants_one_thing(words: list[str], first: ClosedBundle, host: Host) -> None:
    done = host.runtime(first.pyz, "verify", *words)
    assert done.returncode == 2
    assert done.stderr == (
        "error: verify takes a BUNDLE or --prefix DIR, one of the two\nhint: runtime verify --help\n"
    )


def test_a_bundle_is_not_trusted_by_itself(first: ClosedBundle, host: Host) -> None:
    done = host.runtime(first.pyz, "verify", first.tar)
    assert done.returncode == 2
    assert "error: verify BUNDLE needs --trust ALLOWED_SIGNERS" in done.stderr


def test_make_closed_bundle_is_deterministic(tmp_path: Path, closed_key: Key, first: ClosedBundle) -> None:
    again = make_closed_bundle(tmp_path, closed_key, "six")
    assert again.tar.read_bytes() == first.tar.read_bytes()
    assert again.kit_digest == first.kit_digest


def test_the_units_that_verify_every_day(tmp_path: Path, installed: Path, host: Host) -> None:
    model = ModelEntry(name="m", adapter="hcx", path="models/m", format="safetensors", origin="dir")
    rendered = render_payload(Subject(name="demo", version="1", target=HOST_TARGET, models=(model,)))
    for kind in ("service", "timer"):
        text = string.Template(rendered[f"config/sealift-verify.{kind}"].decode()).safe_substitute(PREFIX=installed)
        (tmp_path / f"demo-verify.{kind}").write_text(text)
    service = (tmp_path / "demo-verify.service").read_text()
    (start,) = [line.removeprefix("ExecStart=") for line in service.splitlines() if line.startswith("ExecStart=")]
    done = host.run(*start.split())
    assert done.returncode == 0, done.stderr
    (stop,) = [line.removeprefix("ExecStopPost=") for line in service.splitlines() if line.startswith("ExecStopPost=")]
    told = tmp_path / "told"
    for name in ("logger", "wall"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name}: $*" >> {told}\n')
        (tmp_path / name).chmod(0o755)
    for status in ("0", "5"):
        environment = {"PATH": f"{tmp_path}:{os.defpath}", "EXIT_STATUS": status}
        subprocess.run(shlex.split(stop), env=environment, check=True)
        assert told.exists() == (status == "5")
    assert told.read_text() == (
        "logger: -p auth.alert -t sealift demo: runtime verify ended with 5, look at journalctl -u demo-verify\n"
        "wall: demo: runtime verify ended with 5, look at journalctl -u demo-verify\n"
    )
    if shutil.which("systemd-analyze"):
        units = [str(tmp_path / "demo-verify.timer"), str(tmp_path / "demo-verify.service")]
        checked = subprocess.run(
            [program("systemd-analyze"), "verify", *units], capture_output=True, text=True, check=False
        )
        assert [line for line in checked.stderr.splitlines() if "demo-verify" in line] == []
