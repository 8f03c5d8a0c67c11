"""Which paths a bundle may hold: those that mean the same on Linux, macOS, Windows, ext4, NTFS and FAT."""

import unicodedata
from collections.abc import Iterable

MAX_COMPONENT = 255
MAX_PATH = 1024
_FORBIDDEN = frozenset('\\:*?"<>|')
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{name}{digit}" for name in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"}
)


def path_problem(path: str) -> str | None:
    """Return why ``path`` can't be in a bundle, or None if it can.

    A path is relative, ``/``-separated, NFC, without control characters, reserved characters, empty or dot
    components, leading or trailing spaces, trailing dots or Windows device names; 255 bytes a component, 1,024 in all.
    """
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not Unicode text"
    if len(encoded) > MAX_PATH:
        return f"is longer than {MAX_PATH} bytes"
    if not unicodedata.is_normalized("NFC", path):
        return "is not in Unicode normal form NFC"
    for component in path.split("/"):
        if problem := _component_problem(component):
            return problem
    return None


def _component_problem(component: str) -> str | None:
    if component in {"", ".", ".."}:
        return f"has the component {component!r}"
    if len(component.encode("utf-8")) > MAX_COMPONENT:
        return f"has a component longer than {MAX_COMPONENT} bytes"
    return _character_problem(component)


def _character_problem(component: str) -> str | None:
    # Categories Cc, Cf (which hides text, such as right-to-left overrides), Zl and Zp.
    if any(unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} for char in component):
        return "has a control or invisible character"
    if bad := _FORBIDDEN.intersection(component):
        return f"has the character {min(bad)!r}"
    if component != component.strip() or component.endswith("."):
        return "has a component that begins or ends with a space, or ends with a dot"
    if component.split(".", 1)[0].rstrip().lower() in _DEVICES:
        return f"has the Windows device name {component!r}"
    return None


def fold_path(path: str) -> str:
    """Return the form in which no two paths of a bundle may be equal: case-folded NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def find_collision(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return two paths that can't exist side by side everywhere, or None.

    They are equal when case-folded, or one is a folder in the other's path; ``A/x`` and ``a/y`` collide too, since
    they would need two folders whose names differ only in case.
    """
    files: dict[str, str] = {}
    folders: dict[str, tuple[str, str]] = {}  # folded folder -> (its spelling, one file below it)
    for path in paths:
        folded = fold_path(path)
        if folded in files:
            return files[folded], path
        if folded in folders:
            return folders[folded][1], path
        files[folded] = path
        parts = path.split("/")
        for depth in range(1, len(parts)):
            spelling = "/".join(parts[:depth])
            key = fold_path(spelling)
            known = folders.setdefault(key, (spelling, path))
            if known[0] != spelling:
                return known[1], path
            if key in files:
                return files[key], path
    return None
