"""The one safe order, and that no hostile byte ends in anything but a typed error."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.bundle import TrustedBundle, find_damage, verify_content, verify_trust
from manifests.digests import sha256_hex
from manifests.errors import IntegrityError, SealiftError, TrustError, UsageError
from manifests.manifest import parse_manifest
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.tarlayout import SIGNATURE_SLOT, head_of, tar_layout
from tests.factories import (
    NOW,
    SMALL_FILES,
    Content,
    Key,
    make_bundle,
    make_manifest,
    sign_slot,
    tree_of,
    unpack_bundle,
    write_bundle,
)


def verify(path: Path, key: Key, *, threads: int | None = None) -> TrustedBundle:
    with open_medium(path) as medium:
        bundle = verify_trust(medium, key.trust, now=NOW)
        verify_content(medium, bundle.manifest, Silent(), threads=threads)
    return bundle


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_a_good_bundle(small_bundle: Path, key: Key, threads: int | None) -> None:
    bundle = verify(small_bundle, key, threads=threads)
    expected = make_manifest(SMALL_FILES, executable=["bootstrap/install.sh"])
    assert bundle.manifest == expected
    assert bundle.digest == sha256_hex(expected.encode())
    assert [signer.principals for signer in bundle.signers] == [key.identity]


def test_an_empty_bundle(tmp_path: Path, key: Key) -> None:
    assert verify(make_bundle(tmp_path, {}, key=key), key).manifest.files == ()


def test_the_signature_comes_before_the_manifest(tmp_path: Path, key: Key, second_key: Key) -> None:
    """Bytes that are no manifest are refused for their signer first, and only when signed for what they are."""
    data = b"not a manifest at all"
    for signer, error in ((second_key, TrustError), (key, IntegrityError)):
        path = tmp_path / "x.tar"
        path.write_bytes(head_of(data) + sign_slot(data, signer) + bytes(1024))
        with pytest.raises(error) as caught, open_medium(path) as medium:
            verify_trust(medium, key.trust, now=NOW)
    assert str(caught.value) == "manifest.json: not canonical JSON: Expecting value: line 1 column 1 (char 0)"


def test_a_changed_manifest_is_a_matter_of_trust(small_bundle: Path, tmp_path: Path, key: Key) -> None:
    data = bytearray(small_bundle.read_bytes())
    data[600] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(TrustError) as caught:
        verify(tmp_path / "x", key)
    assert caught.value.message == (
        f"the signature by {key.identity} ({key.public.fingerprint}) does not fit the manifest: "
        "one of the two was changed"
    )


def test_a_changed_signature_is_a_matter_of_trust(tmp_path: Path, key: Key) -> None:
    manifest = make_manifest(SMALL_FILES)
    slot = bytearray(sign_slot(manifest.encode(), key))
    slot[200:204] = b"AAAA"
    write_bundle(tmp_path / "x", manifest, SMALL_FILES, bytes(slot))
    with pytest.raises(TrustError):
        verify(tmp_path / "x", key)


def test_an_unsigned_bundle(tmp_path: Path, key: Key) -> None:
    with pytest.raises(TrustError, match=r"^the bundle is not signed$"):
        verify(make_bundle(tmp_path, SMALL_FILES, key=[]), key)


def test_a_threshold(tmp_path: Path, key: Key, second_key: Key) -> None:
    tar = make_bundle(tmp_path, SMALL_FILES, key=[key, second_key])
    with open_medium(tar) as medium:
        assert len(verify_trust(medium, key.trust, now=NOW).signers) == 1
        with pytest.raises(TrustError, match=r"^the bundle has 1 of 2 trusted signatures; good: release@example.com"):
            verify_trust(medium, key.trust, threshold=2, now=NOW)
        with pytest.raises(UsageError):
            verify_trust(medium, key.trust, threshold=0, now=NOW)


def test_cosigning_changes_the_slot_only(tmp_path: Path, key: Key, second_key: Key) -> None:
    one = make_bundle(tmp_path / "one.tar", SMALL_FILES, key=key).read_bytes()
    two = make_bundle(tmp_path / "two.tar", SMALL_FILES, key=[key, second_key]).read_bytes()
    manifest = make_manifest(SMALL_FILES)
    start = tar_layout(manifest.encode(), manifest.files).signature_offset
    assert one != two
    assert one[:start] + one[start + SIGNATURE_SLOT :] == two[:start] + two[start + SIGNATURE_SLOT :]


class Interrupt:
    """A progress that interrupts the work, as Ctrl-C would, after the first bytes."""

    def advance(self, count: int) -> None:
        raise KeyboardInterrupt(count)


def test_an_interrupted_verification_leaves_no_thread_and_changes_nothing(small_bundle: Path, tmp_path: Path) -> None:
    folder = unpack_bundle(small_bundle, tmp_path)
    before, running = tree_of(folder), threading.active_count()
    with open_medium(folder) as medium, pytest.raises(KeyboardInterrupt):
        verify_content(medium, parse_manifest(medium.manifest_bytes), Interrupt(), threads=2)
    assert threading.active_count() == running
    assert tree_of(folder) == before


class Count:
    """Counts bytes."""

    def __init__(self) -> None:
        self.done = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self.done += count


def test_progress_counts_every_byte_once(small_bundle: Path) -> None:
    count = Count()
    with open_medium(small_bundle) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        verify_content(medium, manifest, count, threads=2)
    assert count.done == manifest.payload_size


def test_find_damage_of_a_part(small_bundle: Path, tmp_path: Path) -> None:
    folder = unpack_bundle(small_bundle, tmp_path)
    (folder / "models/tiny/config.json").write_bytes(b"[]\n")
    with open_medium(folder) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        (damage,) = find_damage(medium, manifest.of_kind("model"), Silent())
        assert (damage.piece.label, damage.got) == ("models/tiny/config.json", sha256_hex(b"[]\n"))
        assert find_damage(medium, manifest.of_kind("wheel"), Silent()) == []


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "cut", "insert", "delete"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=600),
    ),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, kind: str, place: float, payload: bytes) -> bytes:
    at = int(place * len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (payload[0] or 1)]) + data[at + 1 :] if data else data
    if kind == "write":
        return data[:at] + payload + data[at + len(payload) :]
    if kind == "cut":
        return data[:at]
    return data[:at] + payload + data[at:] if kind == "insert" else data[:at] + data[at + len(payload) :]


def outcome_of(path: Path, key: Key) -> int | None:
    """Return the exit code of a refusal, None for a bundle that was accepted; anything else propagates."""
    try:
        verify(path, key, threads=1)
    except SealiftError as error:
        return error.exit_code
    return None


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
def test_a_mutated_tar_is_refused_with_a_typed_error(
    small_bundle: Path, tmp_path: Path, key: Key, edits: list[tuple[str, float, bytes]]
) -> None:
    original = data = small_bundle.read_bytes()
    for edit in edits:
        data = edited(data, *edit)
    path = tmp_path / "mutated.tar"
    path.write_bytes(data)
    outcome = outcome_of(path, key)
    assert outcome in {None, 4, 5}
    assert (outcome is None) == (data == original)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=40)), min_size=1, max_size=3))
def test_a_signed_manifest_of_any_content_is_refused_with_a_typed_error(
    key: Key, tmp_path: Path, edits: list[tuple[int, bytes]]
) -> None:
    """Even the signer's own mistakes end in an error that names them."""
    original = data = make_manifest({"docs/a": b"a", "models/m/b": b"b"}).encode()
    for at, payload in edits:
        data = data[:at] + payload + data[at + len(payload) :]
    path = tmp_path / "signed.tar"
    path.write_bytes(head_of(data) + sign_slot(data, key))
    with open_medium(path) as medium:
        if data == original:
            assert verify_trust(medium, key.trust, now=NOW).manifest.encode() == data
            return
        try:
            parsed = verify_trust(medium, key.trust, now=NOW).manifest.encode()
        except IntegrityError as error:
            message = error.message
        else:
            message, data = "manifest.json: is another one", parsed
    assert message.startswith("manifest.json: ")
    assert path.read_bytes()[512:].startswith(data)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*SMALL_FILES, "manifest.json", "manifest.json.sig"]), edits=EDITS)
def test_a_mutated_folder_is_refused_with_a_typed_error(
    small_bundle: Path, tmp_path: Path, key: Key, name: str, edits: list[tuple[str, float, bytes]]
) -> None:
    folder = tmp_path / "folder"
    if not folder.exists():
        unpack_bundle(small_bundle, folder)
    original = data = (folder / name).read_bytes()
    for edit in edits:
        data = edited(data, *edit)
    (folder / name).write_bytes(data)
    try:
        outcome = outcome_of(folder, key)
    finally:
        (folder / name).write_bytes(original)
    assert outcome in {None, 4, 5}
    # A folder's slot may have lost some of its padding, since only the blocks in it count.
    same = data == original or (name == "manifest.json.sig" and data.rstrip(b"\n") == original.rstrip(b"\n"))
    assert (outcome is None) == same


def test_descriptors_are_closed_whatever_happens(small_bundle: Path, tmp_path: Path, key: Key) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 # pathlib would do the same
    for size in (0, 700, 20_000):
        (tmp_path / "x").write_bytes(small_bundle.read_bytes()[:size])
        with pytest.raises(SealiftError):
            verify(tmp_path / "x", key)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 # as above


def test_deep_recomputes_the_whole_file_digest_of_chunked_files(tmp_path: Path, key: Key) -> None:
    """The chunks are what is checked; a builder's wrong whole-file digest shows only when it is asked for."""
    files: dict[str, Content] = {"models/m/w.bin": 65 << 20, "docs/a": b"a"}
    good = make_manifest(files)
    wrong = replace(good, files=(replace(good.files[0], sha256="0" * 64), good.files[1]))
    for manifest in (good, wrong):
        path = tmp_path / "x.tar"
        write_bundle(path, manifest, files, sign_slot(manifest.encode(), key))
        with open_medium(path) as medium:
            verify_content(medium, manifest, Silent())
            if manifest is good:
                verify_content(medium, manifest, Silent(), deep=True)
            else:
                with pytest.raises(IntegrityError) as caught:
                    verify_content(medium, manifest, Silent(), deep=True)
                assert caught.value.message == (
                    f"{path}: 1 problem:\n  models/m/w.bin: expected sha256 {'0' * 64}, "
                    f"got {good.files[0].sha256} for the whole file"
                )


def test_deep_names_damage_once(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, {"models/m/w.bin": 65 << 20}, key=key)
    with tar.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"x")
    with open_medium(tar) as medium, pytest.raises(IntegrityError, match=r": 1 problem:\n  models/m/w.bin chunk 0: "):
        verify_content(medium, parse_manifest(medium.manifest_bytes), Silent(), deep=True)
