"""Models on the Hub: what a repository holds at one commit, through huggingface_hub; the bytes by our own downloads.

huggingface_hub is imported where it is used, so that a bundler without it starts and says so. It decides on the
endpoint (``HF_ENDPOINT``) and the token (``HF_TOKEN``, or the file that ``hf auth login`` writes).
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

from bundler.packages.pipconfig import redact
from bundler.snapshots.download import Download, Session
from bundler.snapshots.patience import (
    PASSING_STATUSES,
    Clock,
    Limits,
    Patience,
    SystemClock,
    TransientError,
    retry_after,
)
from bundler.snapshots.transfer import fetch_all, open_session
from bundler.snapshots.transport import host_of
from bundler.store import Store
from manifests.canonical import Json
from manifests.digests import ContentDigest
from manifests.errors import SourceError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LOGIN: Final = "`hf auth login`, or export HF_TOKEN=..."


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file at a commit: ``size`` in bytes, ``sha256`` for one in LFS (else empty), ``blob_id`` git's sha1."""

    path: str
    size: int
    sha256: str
    blob_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSnapshot:
    """A repository at a commit of 40 hex digits; ``license`` as its card declares it, or empty."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    license: str

    @property
    def purl(self) -> str:
        """The package URL, with the commit as version."""
        return f"pkg:huggingface/{self.repo}@{self.commit}"


class Hub:
    """The Hub that the environment names.

    Args:
        limits: How patient to be.
        clock: The time.
        report: Told of retries and resumptions.

    Raises:
        SourceError: huggingface_hub isn't installed, or ``HF_ENDPOINT`` is no address.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        # It would tell the Hub what is installed here, and ask it for a list of programs to look for.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            from huggingface_hub import HfApi, constants  # noqa: PLC0415 - slow, and an extra
        except ImportError:
            msg = "models from the Hub need the package huggingface_hub, which isn't installed"
            raise SourceError(msg, hint="pip install huggingface_hub") from None
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        if not re.match(r"https?://.", self.endpoint):
            msg = f"HF_ENDPOINT: {redact(self.endpoint)[:200]!r} is not an http or https address"
            raise SourceError(msg, hint="write it with its scheme: https://...")
        self._api = HfApi(endpoint=self.endpoint)
        self._limits, self._clock = limits or Limits(), clock or SystemClock()
        self._report = report

    def snapshot(self, repo: str, revision: str, store: Store) -> HubSnapshot:
        """Return what a repository holds at a revision; a commit that was asked for before isn't asked for again.

        Args:
            repo: ``ORG/NAME``.
            revision: A branch, a tag or a commit.
            store: Remembers.

        Raises:
            SourceError: It isn't there or may not be seen, or the Hub can't be reached or makes no sense.
        """
        if _COMMIT.fullmatch(revision) and (known := _parse_record(store.record("hub", f"{repo}@{revision}"))):
            return known
        found = self._asked(repo, revision, lambda: self._list(repo, revision))
        store.write_record("hub", f"{repo}@{found.commit}", _record(found))
        return found

    def fetch(
        self,
        snapshot: HubSnapshot,
        files: Sequence[HubFile],
        store: Store,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> dict[str, ContentDigest]:
        """Have files of a snapshot in the store; return their digests by path.

        Args:
            snapshot: What the Hub promised.
            files: Those of its files that are wanted.
            store: Gets what it lacks.
            progress: Told of bytes as they come, and of lost ones as a negative number; by several threads.

        Raises:
            SourceError: One can't be had, for example because the repository is gated.
            IntegrityError: One isn't what the Hub promised.
            DiskError: No space, no permission.
        """
        digests = fetch_all([self._download(snapshot, file) for file in files], self._session(store, progress))
        return {file.path: digests[_label(snapshot.repo, file.path)] for file in files}

    def _session(self, store: Store, progress: Callable[[int], None]) -> Session:
        return open_session(
            store,
            self.endpoint,
            authorization=self._authorization(),
            limits=self._limits,
            clock=self._clock,
            report=self._report,
            progress=progress,
        )

    def _authorization(self) -> str:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # noqa: PLC0415 - see above

        return build_hf_headers().get("authorization", "")

    def _download(self, snapshot: HubSnapshot, file: HubFile) -> Download:
        return Download(
            url=f"{self.endpoint}/{snapshot.repo}/resolve/{snapshot.commit}/{quote(file.path)}",
            name=_label(snapshot.repo, file.path),
            size=file.size,
            sha256=file.sha256,
            blob_id=file.blob_id,
            hint=self._gate_hint(snapshot.repo),
        )

    def _gate_hint(self, repo: str) -> str:
        page = f"{self.endpoint.partition('//')[0]}//{host_of(self.endpoint)}/{repo}"
        return f"open {page} in a browser, accept its conditions, then {_LOGIN}"

    def _list(self, repo: str, revision: str) -> HubSnapshot:
        info = self._api.model_info(repo, revision=revision, timeout=self._limits.timeout)
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise self._nonsense(f"{repo}@{revision}: it names no commit")
        listed = self._api.list_repo_tree(repo, recursive=True, revision=info.sha)
        files = tuple(sorted(self._files(listed, repo), key=lambda file: file.path))
        return HubSnapshot(repo=repo, commit=info.sha, files=files, license=_license(info.tags))

    def _files(self, listed: object, repo: str) -> Iterator[HubFile]:
        from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415 - slow, and an extra

        for item in cast("Iterator[object]", listed):
            if isinstance(item, RepoFile):
                file = HubFile(
                    path=item.path,
                    size=item.lfs.size if item.lfs else item.size,
                    sha256=item.lfs.sha256 if item.lfs else "",
                    blob_id=item.blob_id,
                )
                if not _is_sound(file):
                    raise self._nonsense(f"{repo}: {str(file.path)[:200]!r} has no usable size and digest")
                yield file

    def _asked(self, repo: str, revision: str, ask: Callable[[], HubSnapshot]) -> HubSnapshot:
        """Ask, and again while that may help; what huggingface_hub raises becomes ours, without its urls."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled  # noqa: PLC0415 - slow

        patience = Patience(
            name=f"{repo}@{revision}",
            limits=self._limits,
            clock=self._clock,
            report=self._report,
            stop=threading.Event(),
            hint="check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT",
        )
        while True:
            try:
                return ask()
            except OfflineModeIsEnabled:
                msg = f"{repo}@{revision}: HF_HUB_OFFLINE forbids to ask the Hub"
                raise SourceError(msg, hint="unset HF_HUB_OFFLINE") from None
            except HFValidationError:
                raise SourceError(f"{repo[:200]!r} can't be a repository's name on the Hub", hint="ORG/NAME") from None
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status not in PASSING_STATUSES:
                    raise self._refusal(error, repo, revision) from None
                wait = retry_after(error.response.headers.get("Retry-After", ""), self._clock)
                patience.failed(TransientError(f"status {status}", wait=wait), host_of(self.endpoint))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise self._nonsense(f"{repo}@{revision}: {type(error).__name__}") from None
            except Exception as error:
                if not _is_network(error):
                    raise
                patience.failed(TransientError(_network_words(error)), host_of(self.endpoint))

    def _nonsense(self, detail: str) -> SourceError:
        msg = f"{host_of(self.endpoint)} doesn't answer as a Hub does: {detail}"
        return SourceError(msg, hint="check HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else None)

    def _refusal(self, error: "HfHubHTTPError", repo: str, revision: str) -> SourceError:
        """Return what a status means, by the Hub's own error codes, and what to do."""
        host, code = host_of(self.endpoint), error.response.headers.get("X-Error-Code", "")
        has_token = bool(self._authorization())
        if code == "GatedRepo":
            return SourceError(
                f"{repo}: gated at {host}: it is for those who accepted its conditions", hint=self._gate_hint(repo)
            )
        if code == "RevisionNotFound":
            hint = f"look at its branches and tags, or write a commit: hf:{repo}@<40 hex digits>"
            return SourceError(f"{repo}: has no revision {revision!r} at {host}", hint=hint)
        if error.response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
            return SourceError(f"{repo}: {host} doesn't accept your token", hint=f"{_LOGIN}, or unset HF_TOKEN")
        if code == "RepoNotFound" or error.response.status_code in {401, 404}:
            seen = "is not there, or private and not for your token" if has_token else "is not there, or private"
            more = "that your token may read it" if has_token else f"for a private one {_LOGIN}"
            return SourceError(f"{repo}: {seen}, at {host}", hint=f"check the name, and {more}")
        status = f"status {error.response.status_code}"
        return SourceError(f"{repo}: {host} refuses: {status}{f', {code[:80]}' if code else ''}")


def _label(repo: str, path: str) -> str:
    return f"{repo}/{path}"


def _is_sound(file: HubFile) -> bool:
    digests = [file.blob_id, file.sha256] if file.sha256 else [file.blob_id]
    if not all(isinstance(text, str) for text in (file.path, *digests)) or type(file.size) is not int or file.size < 0:
        return False
    return bool(_SHA256.fullmatch(file.sha256) if file.sha256 else _COMMIT.fullmatch(file.blob_id))


def _license(tags: Sequence[str] | None) -> str:
    found = (tag.removeprefix("license:") for tag in tags or () if tag.startswith("license:"))
    return next(found, "")


def _is_network(error: Exception) -> bool:
    """Whether it comes from the client under huggingface_hub, which is another one in each major version."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in {"httpx", "httpx2", "requests"}


def _network_words(error: Exception) -> str:
    name = type(error).__name__
    if "Timeout" in name:
        return "nothing came for too long"
    return "it can't be reached" if "Connect" in name or "Proxy" in name else f"the connection failed ({name})"


def _record(snapshot: HubSnapshot) -> Json:
    files: list[Json] = [[file.path, file.size, file.sha256, file.blob_id] for file in snapshot.files]
    return {"commit": snapshot.commit, "files": files, "license": snapshot.license, "repo": snapshot.repo}


def _parse_record(record: Json) -> HubSnapshot | None:
    if not isinstance(record, dict):
        return None
    rows = cast("list[tuple[str, int, str, str]]", record["files"])
    files = tuple(HubFile(path=path, size=size, sha256=sha256, blob_id=blob) for path, size, sha256, blob in rows)
    repo, commit, declared = (cast("str", record[key]) for key in ("repo", "commit", "license"))
    return HubSnapshot(repo=repo, commit=commit, files=files, license=declared)
