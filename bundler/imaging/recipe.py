"""What an image runs, read from ``Dockerfile.offline``: one source for both ways to make an image."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from bundler.contents.render import render_template
from manifests.manifest import Manifest

_DURATION: Final = re.compile(r"--([a-z-]+)=([0-9]+)s")
_VARIABLE: Final = re.compile(r"\$\{([A-Z]+)\}")
_HEALTH_KEYS: Final = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
LABEL: Final = "io.sealift.manifest.digest"
"""The label that holds the bundle's manifest digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The last stage of the recipe. ``health`` is as Docker's config holds it, durations in ns; ``port`` is TCP."""

    entrypoint: tuple[str, ...]
    health: Mapping[str, object]
    environment: Mapping[str, str]
    user: str
    port: int


@cache
def load_recipe() -> Recipe:
    """Return what ``Dockerfile.offline`` says of the image, its arguments at their defaults."""
    text = render_template("Dockerfile.offline.j2", {}).decode().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stage = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]
    told: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for line in stage:
        word, _, rest = line.partition(" ")
        if word == "ARG":
            name, _, value = rest.partition("=")
            defaults[name] = value
        else:
            told[word] = rest.strip()
    options, _, command = told["HEALTHCHECK"].partition("CMD ")
    durations = {_HEALTH_KEYS[name]: int(seconds) * 10**9 for name, seconds in _DURATION.findall(options)}
    return Recipe(
        entrypoint=tuple(json.loads(told["ENTRYPOINT"])),
        health={"Test": ["CMD", *json.loads(command)], **durations},
        environment={
            name: _fill(value, defaults) for name, _, value in (word.partition("=") for word in told["ENV"].split())
        },
        user=_fill(told["USER"], defaults),
        port=int(told["EXPOSE"]),
    )


def image_config(base: Mapping[str, Any], manifest: Manifest, digest: str, prefix: str) -> dict[str, Any]:
    """Return the ``config`` of an image: the base's, what the recipe says instead, and the labels.

    Args:
        base: The ``config`` of the base image, maybe empty.
        manifest: The bundle's.
        digest: Of the manifest.
        prefix: Where the release lies in the image.
    """
    recipe = load_recipe()
    own = {**recipe.environment, "PREFIX": prefix}
    kept = [item for item in base.get("Env") or () if item.partition("=")[0] not in own]
    labels = {
        LABEL: digest,
        "org.opencontainers.image.created": manifest.created,
        "org.opencontainers.image.title": manifest.name,
        "org.opencontainers.image.version": manifest.version,
    }
    config = {key: value for key, value in base.items() if key != "Cmd"}  # words of the base's own entrypoint
    return config | {
        "Entrypoint": list(recipe.entrypoint),
        "Env": [*kept, *(f"{name}={value}" for name, value in own.items())],
        "ExposedPorts": {**(base.get("ExposedPorts") or {}), f"{recipe.port}/tcp": {}},
        "Healthcheck": dict(recipe.health),
        "Labels": {**(base.get("Labels") or {}), **labels},
        "User": recipe.user,
    }


def _fill(value: str, defaults: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: defaults[match[1]], value)
