"""HTTP to a registry by the standard library: connections that are kept, a private CA, proxies, redirects.

A login goes to the host that asked for it and never along with a redirect; nothing is followed from https to http.
"""

import base64
import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from manifests import __version__
from manifests.errors import SourceError, UsageError
from manifests.fields import shown

Body: TypeAlias = bytes | Callable[[], Iterable[memoryview]]
"""What is sent: bytes, or something that gives them anew each time; its length stands in the headers."""

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_MOST_REDIRECTS: Final = 6
_SMALL: Final = 64 * 1024


class Reply:
    """A response whose body isn't read yet; ``url`` is where it came from, after redirects. Close it."""

    __slots__ = ("_connection", "_give_back", "_response", "url")

    def __init__(
        self,
        response: http.client.HTTPResponse,
        url: str,
        connection: http.client.HTTPConnection,
        give_back: Callable[[http.client.HTTPConnection], None],
    ) -> None:
        self.url = url
        self._response, self._connection, self._give_back = response, connection, give_back

    @property
    def status(self) -> int:
        """The status code."""
        return self._response.status

    def header(self, name: str) -> str:
        """Return a header's value, empty when there is none."""
        return self._response.headers.get(name) or ""

    def headers(self, name: str) -> list[str]:
        """Return the values of a header that may come several times."""
        return self._response.headers.get_all(name) or []

    def readinto(self, view: memoryview) -> int:
        """Fill some of ``view``; 0 at the end, whether or not that was promised."""
        return self._response.readinto(view)

    def read(self, limit: int) -> bytes:
        """Return the body; of a longer one ``limit`` + 1 bytes.

        Raises:
            OSError: It ends before its announced length, or the connection fails.
        """
        data = self._response.read(limit + 1)
        if self._response.length and len(data) <= limit:
            raise ConnectionResetError("the answer ended too early")
        return data

    def close(self) -> None:
        """Keep the connection if the rest of the answer is short, else close it."""
        try:
            if self._response.length is not None and self._response.length <= _SMALL and not self._response.will_close:
                self._response.read()
                self._give_back(self._connection)
                return
        except (OSError, http.client.HTTPException):
            pass
        self._connection.close()


class Wire:
    """Sends requests; several threads may. ``timeout`` in seconds is for a connection and for each read.

    Raises:
        UsageError: The file ``ca`` can't be read, or holds no certificates.
    """

    def __init__(self, *, ca: Path | None, timeout: float) -> None:
        self._timeout = timeout
        self._context = _tls_context(ca)
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._proxies = getproxies()

    def send(self, method: str, url: str, headers: Mapping[str, str], body: Body = b"") -> Reply:
        """Send one request and return its reply, after redirects where the method allows them.

        Args:
            method: Such as ``GET``.
            url: Absolute, http or https.
            headers: ``Authorization`` among them is left out for any other host.
            body: With something other than bytes, ``Content-Length`` must be in ``headers``.

        Raises:
            SourceError: A certificate isn't trusted, it doesn't speak TLS, or redirects lead nowhere good.
            OSError: The connection fails or is too slow.
            http.client.HTTPException: What comes isn't HTTP.
        """
        origin = origin_of(require_address(url, host_of(url)))
        for _ in range(_MOST_REDIRECTS):
            sent = dict(headers) if origin_of(url) == origin else _without_login(headers)
            reply = self._one(method, url, sent, body)
            location = reply.header("Location")
            if reply.status not in _REDIRECTS or not location or method not in {"GET", "HEAD"}:
                return reply
            reply.close()
            target = require_address(location, host_of(url), base=url)
            if urlsplit(target).scheme not in {"https", urlsplit(url).scheme}:
                kind = urlsplit(target).scheme or "nowhere"
                raise SourceError(f"{host_of(url)} redirects from {urlsplit(url).scheme} to {kind[:20]!r}")
            url = target
        raise SourceError(f"{host_of(url)} redirects more than {_MOST_REDIRECTS} times")

    def close(self) -> None:
        """Close the connections that wait for more to do."""
        with self._lock:
            while self._idle:
                for connection in self._idle.popitem()[1]:
                    connection.close()

    def _one(self, method: str, url: str, headers: dict[str, str], body: Body) -> Reply:
        key = (urlsplit(url).scheme, urlsplit(url).netloc)
        with self._lock:
            idle = self._idle.get(key, [])
            connection = idle.pop() if idle else None
        if connection is not None and isinstance(body, bytes):
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine):  # closed there while it was idle
                return self._ask(connection, method, url, headers, body)
            connection = None
        return self._ask(connection or self._connect(url), method, url, headers, body)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, url: str, headers: dict[str, str], body: Body
    ) -> Reply:
        parts = urlsplit(url)
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        if parts.scheme == "http" and self._proxy(url):
            target = url
            headers = {**headers, **_proxy_login(self._proxy(url))}
        sent = {"User-Agent": f"sealift/{__version__}", "Accept-Encoding": "identity", **headers}
        data = (body or None) if isinstance(body, bytes) else body()
        try:
            try:
                connection.request(method, target, body=data, headers=sent)
            except (BrokenPipeError, ConnectionResetError):
                if isinstance(body, bytes):
                    raise  # else it may have been answered, with a refusal, before all was sent
            response = connection.getresponse()
        except BaseException as error:
            connection.close()
            if isinstance(error, ssl.SSLError):
                raise _tls_error(url, error) from error
            raise
        return Reply(response, url, connection, lambda kept: self._keep((parts.scheme, parts.netloc), kept))

    def _keep(self, key: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(connection)

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        proxy = self._proxy(url)
        via = _split_proxy(proxy) if proxy else None
        first = (via.hostname or "", via.port or 80) if via else (host, port)
        if not secure:
            return http.client.HTTPConnection(*first, timeout=self._timeout)
        connection = http.client.HTTPSConnection(*first, timeout=self._timeout, context=self._context)
        if via:
            connection.set_tunnel(host, port, headers=_proxy_login(proxy))
        return connection

    def _proxy(self, url: str) -> str:
        parts = urlsplit(url)
        return "" if proxy_bypass(parts.netloc) else self._proxies.get(parts.scheme, "")


def host_of(url: str) -> str:
    """Return host and port of a url, for messages."""
    return urlsplit(url).netloc.rpartition("@")[2]


def require_address(location: str, host: str, *, base: str = "") -> str:
    """Return where a ``Location`` or the like leads, from ``base``; ``host`` is who said it.

    Raises:
        SourceError: It isn't an address by http or https.
    """
    try:
        url = urljoin(base, location)
        parts = urlsplit(url)
        good = bool(parts.scheme and parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is no number
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise SourceError(f"{host}: leads to what is no address: {shown(location)}")
    return url


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port: what must be equal for a login to be sent."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def network_reason(error: Exception) -> str:
    """Return what went wrong on the network in a few words."""
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    if isinstance(error, socket.gaierror):
        return f"the host's name can't be resolved ({error.strerror})"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return "the connection was cut"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return f"the answer isn't HTTP ({type(error).__name__})"


def _split_proxy(proxy: str) -> SplitResult:
    return urlsplit(proxy if "//" in proxy else f"//{proxy}")


def _proxy_login(proxy: str) -> dict[str, str]:
    login, at, _ = _split_proxy(proxy).netloc.rpartition("@")
    return {"Proxy-Authorization": f"Basic {base64.b64encode(unquote(login).encode()).decode()}"} if at else {}


def _without_login(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != "Authorization"}


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()  # OpenSSL itself reads SSL_CERT_FILE and SSL_CERT_DIR
    if ca is not None:
        try:
            context.load_verify_locations(cafile=ca)
        except ssl.SSLError:
            raise UsageError(f"--ca {ca}: holds no certificates", hint="it has to be a PEM file") from None
        except OSError as error:
            raise UsageError(f"--ca {ca}: can't be read: {error.strerror}") from None
    return context


def _tls_error(url: str, error: ssl.SSLError) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "if your own CA signed it: --ca FILE, or export SSL_CERT_FILE=FILE, its certificates as PEM"
        return SourceError(f"{host_of(url)}: its certificate isn't trusted: {error.verify_message}", hint=hint)
    if error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return SourceError(f"{host_of(url)}: doesn't speak TLS", hint="if it is meant to be without: --plain-http")
    return error
