"""The text files of a bundle, rendered from ``templates/`` and from nothing but the lock: same lock, same bytes."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundler.selfpack import template_root
from manifests.canonical import Json
from manifests.manifest import FileEntry, ModelEntry, Target

SUMS_PATH: Final = "docs/SHA256SUMS"
_DECIMAL: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?", re.ASCII)
_NOT_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # breaks a line, or may not stand in YAML
_YAML_WORDS: Final = ("false", "no", "null", "off", "on", "true", "yes")
OFFLINE_VARIABLES: Final[Mapping[str, str]] = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}
"""What keeps an application's libraries from the network, as the seal of the closed side does for the server."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,=${}-]*", re.ASCII)
_VARIABLES: Final = {"hcx": "HCX_MODEL_PATH", "bge-m3": "BGE_M3_MODEL_PATH"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the templates know of a bundle; ``environment`` is the spec's ``[env]``."""

    name: str
    version: str
    target: Target
    models: tuple[ModelEntry, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The bundle's file name without its ending."""
        return f"{self.name}-{self.version}-{self.target.label}"


def render_payload(subject: Subject) -> dict[str, bytes]:
    """Return the rendered payload files: bundle path -> content."""
    context = {
        "name": subject.name,
        "version": subject.version,
        "stem": subject.stem,
        "target": subject.target,
        "python": subject.target.python,
        "models": [model_context(model) for model in subject.models],
        "environment": dict(sorted(subject.environment.items())),
        "offline": OFFLINE_VARIABLES,
    }
    files = {
        "bootstrap/install.sh": render_template("install.sh.j2", context),
        "bootstrap/Dockerfile.offline": render_template("Dockerfile.offline.j2", context),
        "docs/INSTALL.md": render_template("INSTALL.md.j2", context),
        "config/offline.env": render_template("offline.env.j2", context),
    }
    if subject.models:
        for unit in ("sealift.service", "sealift-verify.service", "sealift-verify.timer", "launch.sh"):
            files[f"config/{unit}"] = render_template(f"{unit}.j2", context)
    for model in subject.models:
        file = f"{model.name.replace('-', '_')}.yaml"
        values = {_yaml_key(key): _yaml_value(value) for key, value in sorted(model.settings.items())}
        files[f"config/{file}"] = render_template("model.yaml.j2", {"model": model, "file": file, "settings": values})
    return files


def render_verify_text(subject: Subject) -> bytes:
    """Return the kit's VERIFY.txt."""
    return render_template("VERIFY.txt.j2", {"stem": subject.stem})


def sums_text(entries: Iterable[FileEntry]) -> bytes:
    """Return the content of ``docs/SHA256SUMS`` over ``entries``, in coreutils' format, by path."""
    lines = sorted((entry.path, entry.sha256) for entry in entries)
    return "".join(f"{sha256}  {path}\n" for path, sha256 in lines).encode("utf-8")


def model_context(model: ModelEntry) -> Mapping[str, str]:
    """Return what templates say of a model; ``variable`` is the one that holds its folder."""
    variable = _VARIABLES.get(model.adapter) or f"{re.sub('[^A-Z0-9]', '_', model.name.upper())}_MODEL_PATH"
    return {"name": model.name, "adapter": model.adapter, "path": model.path, "variable": variable}


def _yaml_key(key: str) -> str:
    # YAML 1.1 reads words such as no as truth values, as keys too.
    plain = re.fullmatch("[a-z_][a-z0-9_-]+", key, re.ASCII) and key not in _YAML_WORDS
    return key if plain else _yaml_value(key)


def _yaml_value(value: Json) -> str:
    # JSON is YAML, and says exactly one thing; a decimal, which the manifest holds as a string, is a number again.
    if isinstance(value, str) and _DECIMAL.fullmatch(value) and value == json.dumps(float(value)):
        mantissa, _, exponent = value.partition("e")
        # YAML 1.1 sees a number only where there is a point, and before an exponent a sign.
        return (mantissa if "." in mantissa else f"{mantissa}.0") + (f"e{exponent}" if exponent else "")
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _env_value(value: str) -> str:
    """Return a value as sh, systemd and the runtime read it; ``$`` stays, for the places that install fills in."""
    return value if _PLAIN.fullmatch(value) else '"' + re.sub(r'(["\\`])', r"\\\1", value) + '"'


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(template_root()),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 # shell, YAML and Markdown, no HTML
        keep_trailing_newline=True,
    )
    environment.filters["env_value"] = _env_value
    return environment


def render_template(template: str, context: Mapping[str, object]) -> bytes:
    """Return a file of ``templates/`` with its places filled in; a name that it lacks is a bug in us."""
    return _environment().get_template(template).render(context).encode("utf-8")
