"""The user's pip configuration, which uv doesn't read by itself: indexes, find-links, constraints, certificates.

Values come from ``pip config list``, so they follow pip's own precedence: a ``[download]`` section overrides
``[global]``, and ``PIP_*`` variables override both (https://pip.pypa.io/en/stable/topics/configuration/). What holds a
password reaches a program only through its environment, and :meth:`PipConfig.redact` takes it out of messages.
"""

import ast
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from bundler.process import run_program
from manifests.errors import UsageError

_SECTIONS: Final = ("global", "download", ":env:")
# People paste passwords with "@", "/" and, between quotes, spaces into urls; a colon that no port follows begins one.
_CREDENTIALS: Final = re.compile(
    r"(?<=['\"`])(?P<scheme>[a-z+]+://)[^/'\":@\n]*:(?![0-9]+/)[^'\"\n]*@"
    r"|(?<=://)(?:[^/\s'\"]+@|[^/\s'\":@]*:(?![0-9]+/)[^\s'\"]*?@)"
)
_QUERY: Final = re.compile(r"(?<=://)(?P<url>[^\s'\"?`]+\?)[^\s'\"`#:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipConfig:
    """What pip would use to fetch. ``find_links`` and indexes are urls or paths, as written."""

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    constraints: tuple[str, ...] = ()
    cert: str = ""
    proxy: str = ""
    trusted_hosts: tuple[str, ...] = ()
    timeout: str = ""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The find-links that are folders of this machine."""
        paths = (_local_path(item) for item in self.find_links)
        return tuple(path for path in paths if path is not None and path.is_dir())

    @property
    def uv_flags(self) -> tuple[str, ...]:
        """Flags for ``uv pip compile`` and ``uv pip install``; none holds a secret.

        Pip looks at all indexes at once, so uv is told to do the same; its default would take a package only from the
        first index that has it.
        """
        flags = ["--no-index"] if self.no_index else ["--index-strategy", "unsafe-best-match"]
        for constraint in self.constraints:
            flags += ["--constraints", constraint]
        return tuple(flags)

    @property
    def uv_environment(self) -> dict[str, str]:
        """Variables for uv: what may hold a password, and what has no flag."""
        values = {
            "UV_DEFAULT_INDEX": self.index_url,
            "UV_INDEX": " ".join(self.extra_index_urls),
            "UV_FIND_LINKS": ",".join(self.find_links),
            "UV_INSECURE_HOST": " ".join(self.trusted_hosts),
            "UV_HTTP_TIMEOUT": self.timeout,
            "SSL_CERT_FILE": self.cert,
            "ALL_PROXY": self.proxy,
        }
        return {key: value for key, value in values.items() if value}

    def login_variables(self, url: str, name: str) -> dict[str, str]:
        """Return uv's variables with the login for ``url``, where it is on the host of an index that has one.

        ``name`` is what uv's command line or project calls the index.
        """
        wanted = urlsplit(url)
        for item in (self.index_url, *self.extra_index_urls):
            parts = urlsplit(item)
            if parts.username and _place(parts) == _place(wanted):
                prefix = f"UV_INDEX_{re.sub('[^A-Z0-9]', '_', name.upper())}"
                login = {"USERNAME": unquote(parts.username), "PASSWORD": unquote(parts.password or "")}
                return {f"{prefix}_{key}": value for key, value in login.items() if value}
        return {}

    def redact(self, text: str) -> str:
        """Return ``text`` without user names and passwords in urls."""
        return redact(text)


def redact(text: str) -> str:
    """Return ``text`` with ``user:password@`` in urls replaced by ``***@``, and their queries by ``***``."""
    clean = _CREDENTIALS.sub(lambda match: f"{match['scheme'] or ''}***@", text)
    return _QUERY.sub(r"\g<url>***", clean)


def load_pip_config() -> PipConfig:
    """Ask the pip of this environment for its configuration.

    Raises:
        UsageError: Pip can't read its configuration.
    """
    done = run_program([sys.executable, "-m", "pip", "--no-input", "config", "list"])
    if done.status != 0:
        reason = redact((done.errors or done.output).strip().splitlines()[-1:][0] if done.errors or done.output else "")
        raise UsageError(f"pip can't read its configuration: {reason}", hint="see `python -m pip config debug`")
    return parse_pip_config(done.output)


def parse_pip_config(text: str) -> PipConfig:
    """Return the configuration that the output of ``pip config list`` describes."""
    values: dict[str, str] = {}
    for section in _SECTIONS:
        values |= _section_values(text, section)
    return PipConfig(
        index_url=values.get("index-url", ""),
        extra_index_urls=tuple(values.get("extra-index-url", "").split()),
        find_links=tuple(values.get("find-links", "").split()),
        no_index=values.get("no-index", "").lower() in {"1", "true", "yes", "on", "y", "t"},
        constraints=tuple(values.get("constraint", "").split()),
        cert=values.get("cert", ""),
        proxy=values.get("proxy", ""),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        timeout=values.get("default-timeout", values.get("timeout", "")),
    )


def _section_values(text: str, section: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name.startswith(f"{section}."):
            found[name.removeprefix(f"{section}.")] = _unquote(value)
    return found


def _unquote(value: str) -> str:
    try:
        return str(ast.literal_eval(value))  # pip prints the repr
    except (ValueError, SyntaxError):
        return value


def _place(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _local_path(item: str) -> Path | None:
    if item.startswith("file:"):
        return Path(unquote(urlsplit(item).path))
    return None if "://" in item else Path(item).expanduser()
