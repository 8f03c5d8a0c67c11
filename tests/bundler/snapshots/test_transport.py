"""One request: certificates, logins in urls, redirects between schemes; words for what fails."""

import datetime as dt
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bundler.snapshots.transport import Transport, host_of
from manifests.errors import SourceError
from manifests.registry_http import network_reason


class _Answer(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/down" else 200)
        if self.path == "/down":
            self.send_header("Location", "http://127.0.0.1:1/x")
        body = self.headers.get("Authorization", "none").encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients refuse its certificate on purpose."""


def make_certificate(folder: Path) -> Path:
    """Return a PEM file with key and certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + dt.timedelta(days=9))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def serve(certificate: Path | None) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Answer)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Path) -> Iterator[str]:
    yield from serve(certificate)


@pytest.fixture
def plain() -> Iterator[str]:
    yield from serve(None)


def body_of(url: str, *, origin: str = "", authorization: str = "") -> bytes:
    with Transport(origin or url, authorization, 10).get(url, {}) as reply:
        return reply.response.read()


def test_untrusted_certificate_is_said_with_the_way_out(secure: str) -> None:
    with pytest.raises(SourceError) as caught:
        body_of(secure)
    host = secure.removeprefix("https://")
    assert caught.value.message == f"{host}: its certificate isn't trusted: self-signed certificate"
    assert caught.value.hint is not None
    assert "export SSL_CERT_FILE=" in caught.value.hint


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificates_of_the_environment(
    secure: str, certificate: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(name, str(certificate))
    assert body_of(f"{secure}/x", authorization="Bearer t") == b"Bearer t"
    with pytest.raises(SourceError) as caught:
        body_of(f"{secure}/down")
    assert caught.value.message == f"{host_of(secure)} redirects from https to http"


def test_missing_bundle_of_certificates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    with pytest.raises(SourceError, match=r"^REQUESTS_CA_BUNDLE: can't read /nonexistent.pem: No such file"):
        Transport("http://h", "", 1)


def test_a_login_in_the_url_becomes_a_header_for_its_origin_only(plain: str) -> None:
    url = plain.replace("://", "://me:p%40ss@")
    assert body_of(url) == b"Basic bWU6cEBzcw=="
    assert body_of(url, authorization="Bearer t") == b"Bearer t"
    assert body_of(url, origin="http://127.0.0.1:1") == b"none"
    assert host_of(f"{url}/x?secret=1") == plain.removeprefix("http://")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/x", "http:///x", "http://h:port/x", "x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(SourceError, match=r"is not an http or https address$"):
        body_of(url)


def test_words_for_what_fails() -> None:
    assert network_reason(TimeoutError()) == "nothing came for too long"
    assert network_reason(socket.gaierror(-2, "Name or service not known")).startswith(
        "the host's name can't be resolv"
    )
    assert network_reason(ConnectionResetError(104, "x")) == "the connection was cut"
    assert network_reason(http.client.RemoteDisconnected("x")) == "the connection was cut"
    assert network_reason(ConnectionRefusedError(111, "Connection refused")) == "connection refused"
    assert network_reason(http.client.BadStatusLine("x")) == "the answer isn't HTTP (BadStatusLine)"
