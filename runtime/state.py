"""What a prefix remembers across releases: the bundle's name, the newest that was ever installed, and a log.

The newest ``created`` is also a floor for this host's clock: a clock that went back makes no expired signer valid.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from manifests.errors import IntegrityError, PolicyError, UsageError
from manifests.fields import Fields
from manifests.files import disk_error, write_atomic
from manifests.manifest import Manifest
from runtime.audit import AuditEntry, append_audit
from runtime.layout import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The content of ``state.json``. ``sequence`` and ``created`` are the highest ever installed here.

    ``previous`` is written before ``current`` flips. Where the flip never came, it names the release that is live
    still, and the one before that is ``earlier``.
    """

    name: str
    sequence: int
    created: str
    previous: str = ""
    earlier: str = ""

    def before(self, live: str) -> str:
        """Return the release that was live before ``live`` (the name of the one that is), empty where none was."""
        return self.earlier if self.previous == live else self.previous

    def encode(self) -> bytes:
        """Return the JSON bytes."""
        data = {"created": self.created, "name": self.name, "previous": self.previous, "sequence": self.sequence}
        data |= {"earlier": self.earlier} if self.earlier else {}
        return json.dumps(data, sort_keys=True).encode("ascii") + b"\n"


def load_state(prefix: Prefix) -> State | None:
    """Return the state of a prefix, None where nothing was ever installed.

    Raises:
        IntegrityError: ``state.json`` is damaged.
    """
    try:
        text = prefix.state.read_bytes()
    except FileNotFoundError:
        return None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"{prefix.state}: not JSON: {error}") from None
    fields = Fields(data, where=f"{prefix.state}: ", known=("created", "earlier", "name", "previous", "sequence"))
    return State(
        name=fields.text("name"),
        sequence=fields.integer("sequence"),
        created=fields.text("created"),
        previous=fields.text("previous", ""),
        earlier=fields.text("earlier", ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTime:
    """The time that ``valid-after`` and ``valid-before`` are judged at, UTC; ``note`` where it isn't the clock's."""

    now: datetime
    note: str = ""


def check_time(state: State | None, clock: datetime, override: datetime | None = None) -> CheckTime:
    """Return when signatures are judged: ``override``, else the clock but never before the newest bundle was made.

    Raises:
        IntegrityError: The state's ``created`` is no time.
    """
    if override is not None:
        return CheckTime(now=override, note=f"signatures judged at --verify-time {override:%Y-%m-%dT%H:%M:%SZ}")
    if state is None:
        return CheckTime(now=clock)
    try:
        floor = datetime.strptime(state.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise IntegrityError(f"state.json: created: {state.created!r} is not a time") from None
    if clock >= floor:
        return CheckTime(now=clock)
    note = (
        f"this host's clock says {clock:%Y-%m-%dT%H:%M:%SZ}, before the newest bundle installed here was made: "
        f"signatures judged at {state.created}"
    )
    return CheckTime(now=floor, note=note)


def is_older(state: State | None, manifest: Manifest) -> bool:
    """Return whether ``manifest`` is older, by sequence or by time, than what was ever installed."""
    return state is not None and (manifest.sequence < state.sequence or manifest.created < state.created)


def check_may_install(state: State | None, manifest: Manifest, *, allow_downgrade: bool) -> None:
    """Refuse another bundle's prefix and, unless allowed, anything older than what was ever installed.

    Raises:
        UsageError: The prefix belongs to another bundle name.
        PolicyError: The bundle is older.
    """
    if state is None:
        return
    if state.name != manifest.name:
        msg = f"the prefix holds bundle {state.name!r}, this bundle is {manifest.name!r}"
        raise UsageError(msg, hint="a prefix holds one bundle name: choose another --prefix")
    if is_older(state, manifest) and not allow_downgrade:
        msg = (
            f"bundle {manifest.version} (sequence {manifest.sequence}, {manifest.created}) is older than what was "
            f"installed here before (sequence {state.sequence}, {state.created})"
        )
        hint = "runtime rollback goes back to what was live; to install an older bundle all the same: --allow-downgrade"
        raise PolicyError(msg, hint=hint)


def advance_state(prefix: Prefix, state: State | None, manifest: Manifest, *, previous: str, earlier: str = "") -> None:
    """Record that ``manifest`` was installed and what was live before; the maxima never go back."""
    sequence = max(manifest.sequence, state.sequence if state else 0)
    created = max(manifest.created, state.created if state else "")
    new = State(name=manifest.name, sequence=sequence, created=created, previous=previous, earlier=earlier)
    write_atomic(prefix.state, new.encode())


def downgrade_note(state: State | None, manifest: Manifest) -> str:
    """Return what the log's line says of an allowed downgrade, empty where there is none."""
    if state is None or not is_older(state, manifest):
        return ""
    new, was = f"sequence {manifest.sequence}, {manifest.created}", f"sequence {state.sequence}, {state.created}"
    return f", an allowed downgrade: {new}, after {was}"


def record(prefix: Prefix, what: str) -> None:
    """Say what was decided or is going live here, in ``var/logs/releases.log`` for people and in the audit log.

    It is called before the thing happens, so that a crash hides nothing; how a command ended is a line of its own.

    Raises:
        DiskError: It can't be written.
    """
    event, _, rest = what.partition(" ")
    append_audit(prefix, AuditEntry(event=event.rstrip(":"), outcome="decided", detail=rest))
    log = prefix.var / "logs" / "releases.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {what}\n")
    except OSError as error:
        raise disk_error(error, f"write {log}") from error
