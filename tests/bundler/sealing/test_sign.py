"""Signing in place: first, co-signed, attached; every form; nothing but the slot changes."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from bundler.sealing.keys import Signer, allowed_signers_line, generate_signer, load_signer
from bundler.sealing.kit import trust_in_kit, write_kit
from bundler.sealing.sign import attach_signature, sign_bundle
from manifests.errors import IntegrityError, TrustError
from manifests.medium import open_medium
from manifests.sshsig import BUNDLE_NAMESPACE, parse_signatures
from manifests.tarlayout import SIGNATURE_SLOT, head_of
from manifests.trust import parse_allowed_signers, verify_signatures
from tests.factories import NOW, SMALL_FILES, Key, make_bundle, make_manifest, unpack_bundle
from tests.factories_closed import program
from tests.factories_media import cut, delta_bytes, delta_text


@pytest.fixture(params=["tar", "volumes", "folder", "delta"])
def unsigned(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An unsigned bundle in every form that can be signed."""
    tar = make_bundle(tmp_path, SMALL_FILES, key=[], executable=["bootstrap/install.sh"])
    if request.param == "delta":
        manifest = make_manifest(SMALL_FILES, executable=["bootstrap/install.sh"])
        text = delta_text(manifest, [0])
        tar.write_bytes(delta_bytes(manifest, SMALL_FILES, b"\n" * SIGNATURE_SLOT, text, [0]))
    if request.param == "volumes":
        first, *others = cut(tar, 21_000, tmp_path / "volumes")
        for path in others:
            path.unlink()  # the first is enough
        return first
    return unpack_bundle(tar, tmp_path / "folder") if request.param == "folder" else tar


@pytest.fixture
def signer(key: Key) -> Signer:
    """The release key, ready to sign."""
    return load_signer(key.path)


def slot_of(path: Path) -> bytes:
    with open_medium(path) as medium:
        return medium.signature_slot


def manifest_of(path: Path) -> bytes:
    with open_medium(path) as medium:
        return medium.manifest_bytes


def ssh_sign(key: Key, manifest: bytes, folder: Path, namespace: str = BUNDLE_NAMESPACE) -> bytes:
    (folder / "m").write_bytes(manifest)
    subprocess.run(
        [program("ssh-keygen"), "-q", "-Y", "sign", "-f", str(key.path), "-n", namespace, str(folder / "m")],
        check=True,
        capture_output=True,
    )
    return (folder / "m.sig").read_bytes()


def test_sign_fills_the_slot_and_nothing_else(unsigned: Path, signer: Signer, key: Key) -> None:
    before = unsigned.read_bytes() if unsigned.is_file() else b""
    assert sign_bundle(unsigned, signer).count == 1
    slot = slot_of(unsigned)
    assert len(slot) == SIGNATURE_SLOT
    (found,) = verify_signatures(manifest_of(unsigned), slot, key.trust, now=NOW)
    assert found.fingerprint == key.public.fingerprint
    if before:
        after, start = unsigned.read_bytes(), len(head_of(manifest_of(unsigned)))
        assert after[:start] == before[:start]
        assert after[start + SIGNATURE_SLOT :] == before[start + SIGNATURE_SLOT :]


def test_a_co_signature_keeps_the_first(unsigned: Path, signer: Signer, key: Key, second_key: Key) -> None:
    sign_bundle(unsigned, signer)
    first = slot_of(unsigned).rstrip(b"\n")
    assert sign_bundle(unsigned, load_signer(second_key.path)).count == 2
    assert slot_of(unsigned).startswith(first + b"\n-----BEGIN SSH SIGNATURE-----\n")
    for one in (key, second_key):
        (found,) = verify_signatures(manifest_of(unsigned), slot_of(unsigned), one.trust, now=NOW)
        assert found.fingerprint == one.public.fingerprint


def test_the_same_key_twice_changes_nothing(unsigned: Path, signer: Signer) -> None:
    sign_bundle(unsigned, signer)
    before = slot_of(unsigned)
    assert sign_bundle(unsigned, signer).count == 1
    assert slot_of(unsigned) == before


def test_stock_ssh_keygen_checks_the_slot_as_it_is(
    unsigned: Path, signer: Signer, key: Key, second_key: Key, tmp_path: Path
) -> None:
    sign_bundle(unsigned, signer)
    sign_bundle(unsigned, load_signer(second_key.path))
    (tmp_path / "slot").write_bytes(slot_of(unsigned))
    words = ["-f", str(key.allowed_signers), "-I", key.identity, "-n", BUNDLE_NAMESPACE, "-s", str(tmp_path / "slot")]
    done = subprocess.run(
        [program("ssh-keygen"), "-Y", "verify", *words], input=manifest_of(unsigned), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_signature_made_elsewhere_is_attached(unsigned: Path, key: Key, signer: Signer, tmp_path: Path) -> None:
    block = ssh_sign(key, manifest_of(unsigned), tmp_path)
    assert attach_signature(unsigned, block).count == 1
    assert slot_of(unsigned) == signer.sign(manifest_of(unsigned)).ljust(SIGNATURE_SLOT, b"\n")
    assert attach_signature(unsigned, block).count == 1


@pytest.mark.parametrize("case", ["namespace", "message"])
def test_a_signature_over_something_else_is_refused(unsigned: Path, key: Key, tmp_path: Path, case: str) -> None:
    message = manifest_of(unsigned) + (b" " if case == "message" else b"")
    block = ssh_sign(key, message, tmp_path, "git" if case == "namespace" else BUNDLE_NAMESPACE)
    with pytest.raises(TrustError) as caught:
        attach_signature(unsigned, block)
    assert caught.value.message == (
        f"{unsigned}: the signature by {key.public.fingerprint} does not fit this manifest and namespace"
    )
    assert caught.value.hint == "sign manifest.json itself: ssh-keygen -Y sign -n sealift-bundle-v1 -f KEY"
    assert slot_of(unsigned).strip(b"\n") == b""


@pytest.mark.parametrize("block", [b"", b"\n\n"])
def test_an_empty_file_is_no_signature(unsigned: Path, block: bytes) -> None:
    with pytest.raises(TrustError, match="the file does not hold exactly one SSH signature"):
        attach_signature(unsigned, block)


def test_two_blocks_are_not_attached_at_once(unsigned: Path, signer: Signer) -> None:
    block = signer.sign(manifest_of(unsigned))
    with pytest.raises(TrustError, match="exactly one"):
        attach_signature(unsigned, block + block)


def test_junk_is_refused(unsigned: Path) -> None:
    with pytest.raises(TrustError, match="something other than SSH signatures"):
        attach_signature(unsigned, b"junk\n")


def test_a_full_slot_is_refused_and_stays(tmp_path: Path) -> None:
    tar = make_bundle(tmp_path, SMALL_FILES, key=[])
    room = SIGNATURE_SLOT // (len(generate_signer().sign(b"")) + 1)
    for _ in range(room):
        sign_bundle(tar, generate_signer())
    before = slot_of(tar)
    with pytest.raises(IntegrityError, match=r"the signatures need \d+ bytes, the slot has 16384"):
        sign_bundle(tar, generate_signer())
    assert slot_of(tar) == before
    assert len(parse_signatures(before)) == room > 40


def test_a_slot_whose_signature_does_not_fit_is_not_added_to(
    tmp_path: Path, small_bundle: Path, second_key: Key
) -> None:
    foreign = slot_of(small_bundle)
    tar = make_bundle(tmp_path, {"docs/other.md": b"other\n"}, key=[])
    start = len(head_of(manifest_of(tar)))
    with tar.open("r+b") as stream:
        stream.seek(start)
        stream.write(foreign)
    with pytest.raises(TrustError, match="does not fit this manifest and namespace"):
        sign_bundle(tar, load_signer(second_key.path))
    assert slot_of(tar) == foreign


def test_something_that_is_no_bundle(tmp_path: Path, signer: Signer) -> None:
    shutil.copy(__file__, tmp_path / "b.tar")
    before = (tmp_path / "b.tar").read_bytes()
    with pytest.raises(IntegrityError, match="is not a Sealift bundle"):
        sign_bundle(tmp_path / "b.tar", signer)
    assert (tmp_path / "b.tar").read_bytes() == before


def test_the_kit_beside_names_who_signed(tmp_path: Path, key: Key, second_key: Key) -> None:
    manifest = make_manifest(SMALL_FILES, executable=["bootstrap/install.sh"])
    tar = make_bundle(tmp_path, SMALL_FILES, key=[], executable=["bootstrap/install.sh"])
    kit = tmp_path / f"{manifest.stem}.kit"
    script = SMALL_FILES["bootstrap/install.sh"]
    assert isinstance(script, bytes)
    digests = [write_kit(kit, manifest, {"install.sh": script}, "")]
    for signer, who in ((load_signer(key.path), "a@example.com"), (load_signer(second_key.path), "b@example.com")):
        done = sign_bundle(tar, signer)
        assert done.kit == kit
        digests.append(trust_in_kit(kit, allowed_signers_line(done.key, who)))
        assert trust_in_kit(kit, allowed_signers_line(done.key, "again@example.com")) == digests[-1]
    assert len(set(digests)) == 3
    trust = parse_allowed_signers((kit / "allowed_signers").read_text(), where="kit")
    with open_medium(tar) as medium:
        found = verify_signatures(medium.manifest_bytes, medium.signature_slot, trust, threshold=2, now=NOW)
    assert sorted(signer.principals for signer in found) == ["a@example.com", "b@example.com"]
    sums = [program("sha256sum"), "--quiet", "--ignore-missing", "-c", "SHA256SUMS"]
    assert subprocess.run(sums, cwd=kit, check=False).returncode == 0
    assert hashlib.sha256((kit / "SHA256SUMS").read_bytes()).hexdigest() == digests[-1]


def test_a_kit_that_was_changed_is_left_alone(tmp_path: Path, signer: Signer) -> None:
    kit = tmp_path / "x.kit"
    write_kit(kit, make_manifest(SMALL_FILES), {}, "")
    (kit / "allowed_signers").write_text("somebody\n")
    before = (kit / "SHA256SUMS").read_bytes()
    with pytest.raises(IntegrityError, match=r"allowed_signers: is not what .*SHA256SUMS lists"):
        trust_in_kit(kit, allowed_signers_line(signer.key, "a@example.com"))
    assert (kit / "SHA256SUMS").read_bytes() == before
    assert (kit / "allowed_signers").read_text() == "somebody\n"
