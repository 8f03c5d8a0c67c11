"""The Ansible role that rolls a bundle out over many hosts; it travels in the bundle, and in the trusted kit."""

from typing import Final

from bundler.contents.render import Subject, render_template
from bundler.selfpack import template_root

_TOP: Final = "ansible"
_ROLE: Final = f"{_TOP}/roles/sealift"
_RENDERED: Final = (f"{_ROLE}/defaults/main.yml", f"{_ROLE}/files/prepare.py")
_TASKS: Final = ("carry", "install", "preflight", "prepare", "report", "stop")
_VERBATIM: Final = (f"{_TOP}/fleet.yml", *(f"{_ROLE}/tasks/{name}.yml" for name in _TASKS))

FLEET_NAMES: Final = tuple(sorted((*_RENDERED, *_VERBATIM)))
"""The role's files, below ``bootstrap/`` of a bundle and in a kit."""


def render_fleet(subject: Subject) -> dict[str, bytes]:
    """Return the role for a bundle: bundle path -> content. What Ansible itself fills in is left as it is."""
    rendered = {name: render_template(f"{name}.j2", {"name": subject.name}) for name in _RENDERED}
    verbatim = {name: (template_root() / name).read_bytes() for name in _VERBATIM}
    return {f"bootstrap/{name}": data for name, data in sorted({**rendered, **verbatim}.items())}
