"""The signed policy, enforced again on the closed side: a pickle that it refuses can't be installed nor loaded.

What the builder's side found is not believed: names come from the signed manifest, pickles from the content.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from manifests import pickles
from manifests.errors import PolicyError, list_problems
from manifests.files import open_regular_fd
from manifests.manifest import FileEntry, Manifest
from manifests.policy import CODE_SUFFIXES, Policy, parse_policy

_HINT: Final = "ask the builder for a bundle without it, or with a written waiver: [[policy.waiver]] in the spec"


def check_names(manifest: Manifest) -> None:
    """Refuse code in a model's folder, by the names that the manifest lists, unless its policy allows or waives it.

    Raises:
        PolicyError: Every such file is named.
        IntegrityError: The policy can't be read.
    """
    _require(manifest, "remote-code", lambda entry: entry.path.endswith(CODE_SUFFIXES))


def check_contents(manifest: Manifest, root: Path) -> None:
    """Refuse pickles among the model files below ``root``, whatever they are called, unless the policy has them.

    Raises:
        PolicyError: Every such file is named.
        IntegrityError: The policy can't be read, or something is no regular file.
        DiskError: A file can't be read.
    """

    def is_pickle(entry: FileEntry) -> bool:
        path = root / entry.path
        if not path.exists():
            return False  # what isn't there can't be loaded; to name it is verify's business
        with os.fdopen(open_regular_fd(path), "rb") as stream:
            return pickles.holds_pickle(stream)

    _require(manifest, "pickle", is_pickle)


def _require(manifest: Manifest, kind: str, found: Callable[[FileEntry], bool]) -> None:
    policy = parse_policy(manifest.policy)
    if policy.action(kind) == "allow":
        return
    asked = [entry for entry in manifest.of_kind("model") if _is_refused(policy, kind, entry, manifest.created)]
    refused = [entry.path for entry in asked if found(entry)]
    if refused:
        label = f"{manifest.stem}: the signed policy refuses {kind}"
        raise PolicyError(list_problems(label, refused), hint=_HINT)


def _is_refused(policy: Policy, kind: str, entry: FileEntry, created: str) -> bool:
    return policy.judge(kind, entry.path, created)[0] == "refused"
