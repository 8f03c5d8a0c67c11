"""Proposed signers: from the spec into the lock and the bundle; and a build whose key an agent holds."""

import json
import subprocess
from pathlib import Path

import pytest

from bundler.lock import load_lock
from bundler.specfile import load_spec
from manifests.manifest import parse_manifest
from manifests.medium import open_medium
from manifests.trust import parse_allowed_signers, verify_signatures
from tests.factories import NOW, Key
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import program

NEXT = 'version = "1.0.0"\nnext-signers = "next.allowed_signers"\n'


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Someone with a spec that proposes signers, and no such file yet."""
    spec = write_spec(tmp_path / "demo.toml")
    spec.write_text(spec.read_text().replace('version = "1.0.0"\n', NEXT))
    return Builder(folder=tmp_path, links=(wheel_links(),))


def test_the_bundle_carries_the_proposed_signers(builder: Builder, key: Key, second_key: Key) -> None:
    folder = builder.folder
    (folder / "next.allowed_signers").write_bytes(second_key.allowed_signers.read_bytes())
    assert builder.run("check", "demo.toml").returncode == 0
    document = builder.json("build", "demo.toml", "--output", "out", "--no-rehearsal", "--key", key.path)
    locked = load_lock(folder / "demo.lock")
    assert locked.next_signers is not None
    assert json.loads((folder / "demo.lock").read_text())["next_signers"]["path"] == "config/allowed_signers"
    with open_medium(folder / document["bundle"]) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        (entry,) = [entry for entry in manifest.files if entry.path == "config/allowed_signers"]
        assert (entry.kind, entry.mode, entry.sha256) == ("config", 0o644, locked.next_signers.sha256)
        content = bytearray(entry.size)
        with medium.reader(entry) as read:
            read(memoryview(content), 0)
    assert bytes(content) == second_key.allowed_signers.read_bytes()
    before = (folder / "demo.lock").read_bytes()
    assert builder.run("lock", "demo.toml").returncode == 0
    assert (folder / "demo.lock").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "bundle.next-signers: FOLDER/next.allowed_signers: No such file or directory"),
        (b"", "bundle.next-signers: FOLDER/next.allowed_signers: lists no signer"),
        (b"who", "bundle.next-signers: FOLDER/next.allowed_signers: line 1: expected PRINCIPALS [OPTIONS]"),
        (b"\xff", "bundle.next-signers: FOLDER/next.allowed_signers: is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("command", ["check", "lock"])
def test_signers_that_the_closed_side_would_refuse(
    builder: Builder, command: str, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (builder.folder / "next.allowed_signers").write_bytes(content)
    code, words = builder.refused(command, "demo.toml")
    assert code == 2
    assert words.startswith(f"error: demo.toml: {problem.replace('FOLDER', str(builder.folder))}")
    assert not (builder.folder / "demo.lock").exists()


def test_a_spec_without_them_has_the_digest_that_it_had(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "demo.toml")
    before = load_spec(spec)
    assert before.next_signers == ""
    assert "next-signers" not in before._to_json()
    spec.write_text(spec.read_text().replace('version = "1.0.0"\n', NEXT))
    assert load_spec(spec).digest != before.digest


def test_build_with_a_key_that_an_agent_holds(tmp_path: Path) -> None:
    write_spec(tmp_path / "demo.toml")
    words = ["-q", "-t", "ed25519", "-N", "", "-C", "release@example.com", "-f", str(tmp_path / "id")]
    subprocess.run([program("ssh-keygen"), *words], check=True)
    told = subprocess.run(
        [program("ssh-keygen"), "-l", "-f", str(tmp_path / "id.pub")], capture_output=True, text=True, check=True
    )
    fingerprint = told.stdout.split()[1]
    # ssh-agent COMMAND runs the command with an agent of its own, which ends with it.
    script = f'ssh-add -q id && rm id && exec "$@" --key agent:{fingerprint}'
    wrap = (program("ssh-agent"), program("sh"), "-c", script, "sh")
    builder = Builder(folder=tmp_path, links=(wheel_links(),), wrap=wrap)
    document = builder.json("build", "demo.toml", "--output", "out", "--no-rehearsal")
    assert not (tmp_path / "id").exists()
    kit_signers = (tmp_path / document["kit"] / "allowed_signers").read_text()
    kind, text, who = (tmp_path / "id.pub").read_text().split()
    assert kit_signers == f'{who} namespaces="sealift-*" {kind} {text}\n', "the comment is the agent's"
    trust = parse_allowed_signers(kit_signers, where="kit")
    with open_medium(tmp_path / document["bundle"]) as medium:
        (found,) = verify_signatures(medium.manifest_bytes, medium.signature_slot, trust, now=NOW)
    assert found.fingerprint == fingerprint
