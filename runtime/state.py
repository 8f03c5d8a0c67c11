"""What a prefix remembers across releases: the bundle's name and the newest sequence that was ever installed."""

import json
from dataclasses import dataclass

from manifests.errors import IntegrityError, PolicyError, UsageError
from manifests.fields import Fields
from manifests.files import write_atomic
from manifests.manifest import Manifest
from runtime.layout import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The content of ``state.json``. ``sequence`` and ``created`` are the highest ever installed here."""

    name: str
    sequence: int
    created: str
    previous: str = ""

    def encode(self) -> bytes:
        """Return the JSON bytes."""
        data = {"created": self.created, "name": self.name, "previous": self.previous, "sequence": self.sequence}
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
    fields = Fields(data, where=f"{prefix.state}: ", known=("created", "name", "previous", "sequence"))
    return State(
        name=fields.text("name"),
        sequence=fields.integer("sequence"),
        created=fields.text("created"),
        previous=fields.text("previous", ""),
    )


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
    if manifest.sequence < state.sequence and not allow_downgrade:
        msg = (
            f"bundle {manifest.version} (sequence {manifest.sequence}, {manifest.created}) is older than what was "
            f"installed here before (sequence {state.sequence}, {state.created})"
        )
        raise PolicyError(msg, hint="if you really want the older one: --allow-downgrade")


def advance_state(prefix: Prefix, state: State | None, manifest: Manifest, *, previous: str) -> None:
    """Record that ``manifest`` was installed and that ``previous`` was live before; the maxima never go back."""
    sequence = max(manifest.sequence, state.sequence if state else 0)
    created = max(manifest.created, state.created if state else "")
    new = State(name=manifest.name, sequence=sequence, created=created, previous=previous)
    write_atomic(prefix.state, new.encode())
