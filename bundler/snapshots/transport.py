"""One HTTP request: proxies and certificates of the environment, redirects, and a secret that stays with its host.

``urllib`` and not a third-party client: huggingface_hub has changed the client under it from one major version to the
next, and what a download needs (Range, a timeout for each read, the proxies that pip uses) is in the standard library.
Its handler for redirects isn't used, because it passes ``Authorization`` on to any host.
"""

import base64
import contextlib
import http.client
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from manifests import __version__
from manifests.errors import SourceError

_REDIRECTS: Final = 6
_REDIRECT_STATUSES: Final = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response whose body isn't read yet, and the url that gave it, after redirects."""

    response: http.client.HTTPResponse
    url: str

    @property
    def status(self) -> int:
        """The status code."""
        return self.response.status

    def header(self, name: str) -> str:
        """Return a header's value, empty when there is none."""
        return self.response.headers.get(name) or ""


class Transport:
    """Makes requests to one origin and to where it redirects.

    Args:
        origin: The url whose scheme, host and port may see ``authorization``.
        authorization: The header's value, empty for none.
        timeout: Seconds to wait for a connection, and for each read.

    Raises:
        SourceError: The certificates that the environment names can't be read.
    """

    def __init__(self, origin: str, authorization: str, timeout: float) -> None:
        self._origin = _origin(origin) if _is_address(origin) else None
        self._authorization = authorization
        self._timeout = timeout
        self._lock = threading.Lock()
        self._open: set[Reply] = set()
        self._opener = urllib.request.OpenerDirector()
        handlers = (urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(context=_tls_context()))
        for handler in (urllib.request.ProxyHandler(), *handlers):
            self._opener.add_handler(handler)

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Reply]:
        """Ask for ``url``, follow redirects and yield the reply; any other status is for the caller to judge.

        Raises:
            SourceError: It isn't http or https, redirects lead nowhere or from https to http, or a certificate isn't
                trusted.
            OSError: The connection fails or is too slow.
            http.client.HTTPException: What comes isn't HTTP.
        """
        reply = self._followed(url, headers)
        with self._lock:
            self._open.add(reply)
        try:
            yield reply
        finally:
            with self._lock:
                self._open.remove(reply)
                reply.response.close()

    def cut(self) -> None:
        """Cut the connections whose replies are being read, so that no reader waits for its timeout."""
        with self._lock:
            for reply in self._open:
                # The response gives no other way to the socket; it may be at its end, and closed by itself.
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    connection = socket.socket(fileno=os.dup(reply.response.fileno()))
                    connection.shutdown(socket.SHUT_RDWR)
                    connection.close()

    def _followed(self, url: str, headers: Mapping[str, str]) -> Reply:
        for _ in range(_REDIRECTS):
            response = self._request(url, headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECT_STATUSES or location is None:
                return Reply(response=response, url=url)
            response.close()
            target = urljoin(url, location)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise SourceError(f"{host_of(url)} redirects from https to {urlsplit(target).scheme or 'nowhere'}")
            url = target
        raise SourceError(f"{host_of(url)} redirects more than {_REDIRECTS} times")

    def _request(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        clean, login = _without_login(url)
        if not _is_address(clean):
            raise SourceError(f"{clean.partition('?')[0][:200]!r} is not an http or https address")
        request = urllib.request.Request(clean, headers=dict(headers))  # noqa: S310 - the scheme was just checked
        request.add_header("Accept-Encoding", "identity")
        request.add_header("User-Agent", f"sealift/{__version__}")
        if _origin(clean) == self._origin and (secret := self._authorization or login):
            request.add_header("Authorization", secret)
        try:
            return cast("http.client.HTTPResponse", self._opener.open(request, timeout=self._timeout))
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise _untrusted(clean, error.reason) from None
            raise error.reason if isinstance(error.reason, OSError) else error from None


def host_of(url: str) -> str:
    """Return host and port of a url, for messages: no login, no query."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _without_login(url: str) -> tuple[str, str]:
    """Return a url without ``user:password@``, and the same as a header's value."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    clean = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    return clean, f"Basic {base64.b64encode(unquote(login).encode()).decode()}" if login else ""


def _tls_context() -> ssl.SSLContext:
    # OpenSSL itself reads SSL_CERT_FILE and SSL_CERT_DIR; the third is what pip reads, where only that is set.
    bundle = None if os.environ.get("SSL_CERT_FILE") else os.environ.get("REQUESTS_CA_BUNDLE") or None
    try:
        is_folder = bundle is not None and os.path.isdir(bundle)  # noqa: PTH112 - a plain string from the environment
        return ssl.create_default_context(cafile=None if is_folder else bundle, capath=bundle if is_folder else None)
    except OSError as error:
        raise SourceError(f"REQUESTS_CA_BUNDLE: can't read {bundle}: {error.strerror or error}") from None


def _untrusted(url: str, error: ssl.SSLCertVerificationError) -> SourceError:
    msg = f"{host_of(url)}: its certificate isn't trusted: {error.verify_message}"
    return SourceError(
        msg, hint="if a proxy of yours signs it: export SSL_CERT_FILE=its CA certificates, as a PEM file"
    )
