"""The spec's policy, enforced where a bundle is locked and built: what it refuses must not get that far."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from bundler.lock import Lock, LockedApp
from bundler.review.findings import (
    Finding,
    built_findings,
    judge,
    license_findings,
    model_findings,
    native_findings,
    secret_findings,
)
from bundler.review.licenses import WheelReview, review_wheels
from bundler.review.secretscan import find_secrets
from bundler.review.spdx import model_license
from bundler.selfpack import WHEEL_NAME
from bundler.snapshots.modelfacts import PICKLE_SUFFIXES
from bundler.store import Store
from manifests.canonical import Json
from manifests.digests import sha256_hex
from manifests.errors import PolicyError, SpecError, list_problems
from manifests.policy import Policy, parse_policy

_RECORD_KIND: Final = "secrets-1"


def check_model(
    name: str, pickles: Sequence[str], code: Sequence[str], document: Mapping[str, Json], where: str
) -> None:
    """Refuse a model's pickles and code; whether a waiver ran out is known, and refused, once the lock has its time.

    Args:
        name: The model's.
        pickles: Files of it that are pickles, by content or name.
        code: Files of it that are code.
        document: The spec's ``[policy]``.
        where: How messages call the model.

    Raises:
        PolicyError: Names what is refused.
    """
    policy = parse_policy(document, where="policy", error=SpecError)
    for kind, found in (("pickle", pickles), ("remote-code", code)):
        refused = [item for item in found if _is_refused(policy, kind, f"models/{name}/{item}")]
        named = [_named(kind, item) for item in refused]
        if named:
            hint = f"exclude them, or allow: [policy] {kind} = 'allow'"
            raise PolicyError(f"{where}: policy.{kind} refuses {', '.join(sorted(named))}", hint=hint)


def _is_refused(policy: Policy, kind: str, what: str) -> bool:
    waived = any(waiver.covers(kind, what) for waiver in policy.waivers)
    return policy.action(kind) == "refuse" and not waived


def _named(kind: str, name: str) -> str:
    by_content = kind == "pickle" and not name.endswith(PICKLE_SUFFIXES)
    return f"{name} (by its content)" if by_content else name


def check_lock_policy(lock: Lock, store: Store, reviews: Mapping[str, WheelReview] | None = None) -> None:
    """Refuse what the policy of a lock refuses, at the time of the lock.

    Raises:
        PolicyError: Every refused finding is named, or every waiver that ran out.
        SourceError: A wheel isn't in the store.
        IntegrityError: A wheel can't be read.
    """
    policy = parse_policy(lock.policy, where="policy", error=SpecError)
    _check_waivers(policy, lock.created)
    found = lock_findings(lock, store, reviews if reviews is not None else review_wheels(lock, store), policy)
    refused = [item.finding for item in judge(found, policy, lock.created) if item.verdict == "refused"]
    if refused:
        lines = [f"{item.kind}: {item.what}: {item.detail}" for item in refused]
        kind = refused[0].kind
        hint = (
            f"leave it out, allow it ([policy] {kind} = 'allow'), or write a waiver: [[policy.waiver]] class = '{kind}'"
        )
        raise PolicyError(list_problems(f"{lock.name} {lock.version}: the policy refuses", lines), hint=hint)


def _check_waivers(policy: Policy, created: str) -> None:
    expired = [f"{item.kind} {item.what}, by {item.who}, until {item.until}" for item in policy.expired(created)]
    if expired:
        label = f"waivers that had run out when the bundle was locked, {created}"
        raise PolicyError(list_problems(label, expired), hint="have them renewed in the spec, or remove them")


def lock_findings(lock: Lock, store: Store, reviews: Mapping[str, WheelReview], policy: Policy) -> Iterator[Finding]:
    """Yield everything that a policy decides on and that a lock and its store know."""
    built = {build.wheel_sha256: build.source for build in lock.builds}
    for file in (lock.installer, *lock.wheels):
        review = reviews[file.path]
        yield from license_findings(file.path, review.license, policy)
        yield from native_findings(file.path, review.native)
        yield from built_findings(file.path, built.get(file.sha256, ""))
    # Ours travels too: a report finds it, so a build that passes must have judged it.
    yield from license_findings(f"wheels/{WHEEL_NAME}", "Apache-2.0", policy)
    for model in lock.models:
        yield from license_findings(model.entry.path, model_license(model.license), policy)
        yield from model_findings(model.entry.path, model.facts)
    if policy.action("secrets") == "refuse":
        for app in lock.apps:
            yield from _app_secrets(app, store)


def _app_secrets(app: LockedApp, store: Store) -> Iterable[Finding]:
    key = sha256_hex("".join(f"{file.sha256} {file.path}\n" for file in app.files).encode())
    known = store.record(_RECORD_KIND, key)
    if isinstance(known, list):
        pairs = [item for item in known if isinstance(item, list) and len(item) == 2]
        return [Finding(kind="secrets", what=str(what), detail=str(detail)) for what, detail in pairs]
    found: list[Finding] = []
    for file in app.files:
        with store.open(file.sha256) as stream:
            found += secret_findings(file.path, find_secrets(stream))
    store.write_record(_RECORD_KIND, key, [[item.what, item.detail] for item in found])
    return found
