"""What is fuzzed, and what must hold of it whatever the bytes are. What was found is a case of tests/hostile."""

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from manifests.bundle import verify_content, verify_trust
from manifests.errors import IntegrityError, SealiftError, TrustError
from manifests.manifest import parse_manifest
from manifests.medium import open_medium
from manifests.paths import find_collision, fold_path, path_problem
from manifests.pieces import Silent
from manifests.sshsig import parse_signatures
from manifests.tarlayout import SIGNATURE_SLOT, header_size, member_header, tar_layout
from manifests.trust import parse_allowed_signers, verify_signatures
from tests.factories import NOW, SMALL_FILES, make_key, make_manifest, sign_slot, write_bundle

_HOME: Final = tempfile.TemporaryDirectory(prefix="sealift-fuzz-")
_FOLDER: Final = Path(_HOME.name)
_KEY: Final = make_key(_FOLDER / "key", seed=b"F" * 32)
_TRUST_TEXT: Final = _KEY.allowed_signers.read_text()
_TRUST: Final = _KEY.trust
_MANIFEST: Final = make_manifest(SMALL_FILES)
_BYTES: Final = _MANIFEST.encode()
_SLOT: Final = sign_slot(_BYTES, _KEY)
write_bundle(_FOLDER / "good.bundle.tar", _MANIFEST, SMALL_FILES, _SLOT)
_TAR: Final = (_FOLDER / "good.bundle.tar").read_bytes()
_LAYOUT: Final = tar_layout(_BYTES, _MANIFEST.files)

TARGETS: Final[dict[str, tuple[Callable[..., None], Mapping[str, SearchStrategy[Any]]]]] = {}
"""Name of a target to its function and where the arguments come from."""

Edit = tuple[int, int, bytes]
"""Where (modulo the length), how many bytes go, and which come."""

_edits = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4
)
_tokens = st.sampled_from(
    [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"e1", b"1.0", b"null", b"\n", b"\0", b" "]
)
_splices = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 3), _tokens), min_size=1, max_size=4)


def target(name: str, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a target; Hypothesis decorates a function once only, and every round needs it again."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        TARGETS[name] = (function, strategies)
        return function

    return register


def mutated(data: bytes, edits: Sequence[Edit]) -> bytes:
    """Return ``data`` after the edits."""
    for position, gone, new in edits:
        start = position % (len(data) + 1)
        data = data[:start] + new + data[start + gone :]
    return data


@target("manifest", edits=_edits | _splices)
def fuzz_manifest(edits: Sequence[Edit]) -> None:
    """A manifest is refused, or encodes to the very bytes it was parsed from."""
    data = mutated(_BYTES, edits)
    with contextlib.suppress(IntegrityError):
        assert parse_manifest(data).encode() == data


@target("signature", edits=_edits | _splices, message=st.sampled_from([_BYTES, _BYTES + b" ", b""]))
def fuzz_signature(edits: Sequence[Edit], message: bytes) -> None:
    """A slot is refused, or it holds signatures; none of them ever fits another message."""
    slot = mutated(_SLOT, edits)
    with contextlib.suppress(TrustError):
        signers = verify_signatures(message, slot, _TRUST, now=NOW)
        assert message == _BYTES
        assert [signer.fingerprint for signer in signers] == [_KEY.public.fingerprint]
        assert all(signature.key.blob for signature in parse_signatures(slot))


@target("armor", edits=_edits, blob=st.binary(max_size=400))
def fuzz_armor(edits: Sequence[Edit], blob: bytes) -> None:
    """Well armored blobs reach the parser inside, which refuses or understands all of them."""
    import base64  # noqa: PLC0415 # for this target alone

    good = base64.b64decode(b"".join(_SLOT.split(b"-----\n")[1].split(b"-----")[0].split()))
    for data in (mutated(good, edits), blob):
        text = base64.encodebytes(data)
        slot = b"-----BEGIN SSH SIGNATURE-----\n" + text + b"-----END SSH SIGNATURE-----\n"
        with contextlib.suppress(TrustError):
            assert len(parse_signatures(slot)) == 1


@target("allowed-signers", text=st.text(max_size=200), edits=_edits)
def fuzz_allowed_signers(text: str, edits: Sequence[Edit]) -> None:
    """A trust file is refused, or lists keys; a file that doesn't hold the key's line never trusts the key."""
    for candidate in (text, mutated(_TRUST_TEXT.encode(), edits).decode("utf-8", "replace")):
        with contextlib.suppress(TrustError):
            trust = parse_allowed_signers(candidate, where="fuzz")
            assert trust.signers
            held = any(signer.key.blob == _KEY.public.blob for signer in trust.signers)
            assert held <= (_KEY.public.line.split()[1] in candidate)


@target("medium", edits=_edits)
def fuzz_medium(edits: Sequence[Edit]) -> None:
    """Of all tars, only the one with exactly the signed bytes outside of the slot is accepted."""
    data = mutated(_TAR, edits)
    path = _FOLDER / "fuzzed.bundle.tar"
    path.write_bytes(data)
    with contextlib.suppress(SealiftError), open_medium(path) as medium:
        bundle = verify_trust(medium, _TRUST, now=NOW)
        verify_content(medium, bundle.manifest, Silent(), threads=1)
        start = _LAYOUT.signature_offset
        assert data[:start] == _TAR[:start]
        assert data[start + SIGNATURE_SLOT :] == _TAR[start + SIGNATURE_SLOT :]


@target(
    "header",
    path=st.text(min_size=1, max_size=300),
    size=st.integers(0, 2**53 - 1),
    mode=st.sampled_from([0o644, 0o755]),
)
def fuzz_header(path: str, size: int, mode: int) -> None:
    """Whatever path a manifest may hold, Python's tarfile reads from our header what we meant."""
    if path_problem(path) is not None:
        return
    header = member_header(path, size, mode)
    assert len(header) == header_size(path)
    assert len(header) % 512 == 0
    info = tarfile.TarFile(fileobj=io.BytesIO(header + bytes(1024))).next()
    assert info is not None
    assert (info.name, info.size, info.mode, info.isreg(), info.linkname) == (path, size, mode, True, "")


@target("paths", path=st.text(max_size=60), other=st.text(max_size=60))
def fuzz_paths(path: str, other: str) -> None:
    """An accepted path is relative and plain on POSIX and on Windows, and twins are found."""
    if path_problem(path) is None:
        assert not PurePosixPath(path).is_absolute()
        windows = PureWindowsPath(path)
        assert not windows.drive
        assert not windows.root
        assert not windows.is_reserved()
        assert list(windows.parts) == path.split("/")
        assert find_collision([path, path]) == (path, path)
        if path_problem(other) is None and fold_path(path) == fold_path(other):
            assert find_collision([path, other]) is not None


def run_target(name: str, *, examples: int, number: int) -> None:
    """Run one target with ``examples`` inputs drawn from seed ``number``; what breaks is raised with its input."""
    wanted = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    function, strategies = TARGETS[name]
    wanted(seed(number)(given(**strategies)(function)))()
