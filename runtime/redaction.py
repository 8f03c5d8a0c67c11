"""Taking out of a text what must not cross the gap: secrets, and the names of people, hosts and addresses.

The same name becomes the same stand-in everywhere (``<user-1>``), so that a reader can still tell who is who.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final

_SECRETS: Final = (
    re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL),
    re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abpr]-|AKIA|nvapi-)[A-Za-z0-9_-]{6,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+){1,2}"),
    re.compile(r"\b(?:ssh-[a-z0-9-]+|sk-ssh-[a-z0-9@.-]+) AAAA[A-Za-z0-9+/=]+"),
    re.compile(r"(?i)(?<=bearer )\S+|(?<=basic )[A-Za-z0-9+/=]{8,}"),
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),
)
_ASSIGNED: Final = re.compile(
    r"""(?ix)(\b[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|private[_-]?key|credential|cookie)s?[\w.-]*
    ["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}]+)"""
)
_BLOB: Final = re.compile(r"(?<![A-Za-z0-9+/=_:-])(?=[A-Za-z0-9+/_-]*[G-Zg-z])[A-Za-z0-9+/_-]{40,}={0,2}")
_QUOTED: Final = re.compile(r"'[^'\n]{60,}'|\"[^\"\n]{200,}\"")
_MAIL: Final = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\b")
_HOME: Final = re.compile(r"(?<=/home/)[^/\s\"',:;<]+|(?<=/Users/)[^/\s\"',:;<]+")
_IPV4: Final = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?![\w:])")
_MAC: Final = re.compile(r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b")
_KEPT_USERS: Final = frozenset({"", "root", "nobody"})
_KEPT_HOSTS: Final = frozenset({"", "localhost", "(none)"})
_SHORTEST_NAME: Final = 2


class Redactor:
    """Replaces; what it has seen once it knows again. A user ``root`` and the addresses of loopback stay."""

    def __init__(self, *, users: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        self._seen: dict[str, dict[str, str]] = {}
        self._users = sorted({user for user in users if user not in _KEPT_USERS}, key=len, reverse=True)
        self._hosts = sorted({host for host in hosts if host not in _KEPT_HOSTS}, key=len, reverse=True)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many different things of each kind were replaced."""
        return {kind: len(names) for kind, names in sorted(self._seen.items())}

    def redact(self, text: str) -> str:
        """Return ``text`` without what must not cross: secrets first, since they may hold names."""
        for pattern in _SECRETS:
            text = pattern.sub("<secret>", text)
        text = _ASSIGNED.sub(lambda match: f"{match[1]}<secret>", text)
        text = _QUOTED.sub(lambda match: f"<{len(match[0]) - 2} characters>", text)
        text = _BLOB.sub("<secret>", text)
        text = _MAIL.sub(lambda match: self._stand_in("mail", match[0]), text)
        text = _HOME.sub(lambda match: self._stand_in("user", match[0]), text)
        text = _MAC.sub(lambda match: self._stand_in("mac", match[0]), text)
        text = _IPV4.sub(self._address, text)
        text = _IPV6.sub(self._address, text)
        for kind, names in (("host", self._hosts), ("user", self._users)):
            for name in names:
                if len(name) >= _SHORTEST_NAME:
                    stand_in = self._stand_in(kind, name) if name in text else ""
                    text = re.sub(rf"(?<![\w<-]){re.escape(name)}(?![\w>-])", stand_in, text)
        return text

    def _address(self, match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        return match[0] if address.is_loopback or address.is_unspecified else self._stand_in("ip", match[0])

    def _stand_in(self, kind: str, name: str) -> str:
        known = self._seen.setdefault(kind, {})
        return known.setdefault(name, f"<{kind}-{len(known) + 1}>")
