"""The role: whole in bundle and kit, made of ansible-core's own modules, and its one script at work."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.fleet import FLEET_NAMES, render_fleet
from bundler.contents.render import Subject
from bundler.sealing.kit import CARRIED, write_kit
from bundler.selfpack import template_root
from manifests.digests import sha256_hex
from manifests.manifest import parse_manifest
from tests.factories import TARGET, Key, make_bundle, make_manifest
from tests.factories_closed import program

SUBJECT: Final = Subject(name="rag", version="1.0.0", target=TARGET, models=())
FILES: Final = {**render_fleet(SUBJECT), "bootstrap/install.sh": b"#!/bin/sh\n", "bootstrap/runtime.pyz": b"PK"}
PREPARE: Final = "ansible/roles/sealift/files/prepare.py"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit with the role."""
    carried = {name: FILES[f"bootstrap/{name}"] for name in CARRIED if f"bootstrap/{name}" in FILES}
    write_kit(tmp_path / "kit", make_manifest(FILES), carried, "who ssh-ed25519 AAAA\n")
    return tmp_path / "kit"


def prepare(kit: Path, bundle: Path, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", "-S", "-B", kit / PREPARE, bundle, kit],
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_template_is_forgotten() -> None:
    top = template_root()
    there = {path.relative_to(top).as_posix() for path in (top / "ansible").rglob("*") if path.is_file()}
    assert {name.removesuffix(".j2") for name in there} == set(FLEET_NAMES)
    assert set(render_fleet(SUBJECT)) == {f"bootstrap/{name}" for name in FLEET_NAMES}


def test_the_role_is_in_the_kit_and_under_its_one_digest(kit: Path) -> None:
    there = {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()}
    assert set(FLEET_NAMES) <= there
    done = subprocess.run(
        [program("sha256sum"), "--strict", "-c", "SHA256SUMS"], cwd=kit, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} >= set(FLEET_NAMES)
    (kit / "ansible/fleet.yml").write_text("- hosts: all\n")
    words = [program("sha256sum"), "--quiet", "-c", "SHA256SUMS"]
    assert subprocess.run(words, cwd=kit, capture_output=True, check=False).returncode == 1


def test_what_is_filled_in_here_and_what_by_ansible() -> None:
    defaults = FILES["bootstrap/ansible/roles/sealift/defaults/main.yml"].decode()
    assert "\nsealift_prefix: /opt/rag\n" in defaults
    assert '\nsealift_work: "{{ sealift_prefix }}.fleet"\n' in defaults
    assert "\nsealift_max_failures: 0\n" in defaults


def test_only_modules_of_ansible_core_are_used() -> None:
    text = "".join(data.decode() for name, data in FILES.items() if name.endswith(".yml"))
    used = set(re.findall(r"^ +([a-z_]+(?:\.[a-z_]+)+):", text, re.MULTILINE))
    assert {name.rpartition(".")[0] for name in used} == {"ansible.builtin"}
    assert len(used) >= 9


def test_every_variable_has_a_default() -> None:
    text = "".join(data.decode() for name, data in FILES.items() if name.endswith(".yml"))
    used = set(re.findall(r"\bsealift_[a-z_]+\b", text))
    defaults = FILES["bootstrap/ansible/roles/sealift/defaults/main.yml"].decode()
    given = set(re.findall(r"^(sealift_[a-z_]+):", defaults, re.MULTILINE))
    made = set(re.findall(r"^ +(?:register: )?(sealift_[a-z_]+)(?::|$)", text, re.MULTILINE))
    assert used - given - made == {"sealift_serial", "sealift_hosts"}, "those two belong to the plays"


def test_the_head_of_a_bundle_is_prepared_for_preflight(kit: Path, key: Key, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, {**FILES, "models/big/zeros.bin": 50_000_000}, key=key)
    done = prepare(kit, bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with tarfile.open(found["archive"]) as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        content = {name: stream.read() for name, stream in members.items() if stream is not None}
    assert sorted(content) == [
        "head.bundle.tar",
        "kit/SHA256SUMS",
        "kit/allowed_signers",
        "kit/install.sh",
        "kit/runtime.pyz",
    ]
    head = content["head.bundle.tar"]
    whole = bundle.read_bytes()
    assert whole.startswith(head)
    assert len(head) < 100_000
    size = int(whole[124:135], 8)
    assert found["digest"] == sha256_hex(whole[512 : 512 + size])
    assert found["size"] == len(whole)
    assert found["file"] == bundle.name
    version = parse_manifest(whole[512 : 512 + size]).version
    assert found["release"] == f"{version}-{found['digest'][:12]}"


def test_what_is_no_bundle_is_refused(kit: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(bytes(2048))
    done = prepare(kit, other, tmp_path)
    expected = f"{other}: is no bundle as one file; of volumes or a folder use sealift_source=present\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
