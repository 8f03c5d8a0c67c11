"""Real registries on loopback: Debian's ``docker-registry`` with logins, tokens and TLS."""

import base64
import contextlib
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from manifests.artifact import OCI_MANIFEST
from manifests.reference import Patience, Reference, Remote
from tests.factories_closed import program

USER: Final = "builder"
PASSWORD: Final = "pass:word"  # noqa: S105 # of a registry that lives for one test
QUICK: Final = Patience(attempts=3, first_delay=0.01, timeout=20)
REPOSITORY: Final = "team/demo"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True, kw_only=True)
class RegistryServer:
    """A ``docker-registry`` below ``folder``; ``auth`` and ``tls`` are the sections of its configuration."""

    folder: Path
    auth: str = ""
    tls: str = ""
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def host(self) -> str:
        """Where it is, as in a reference."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder / 'data'}}}, delete: {{enabled: true}}}}\n"
            f"http:\n  addr: {self.host}\n  secret: one-secret-for-every-start\n{self.tls}{self.auth}"
        )
        log = (self.folder / "log.txt").open("ab")
        with log:
            self.process = subprocess.Popen(
                [program("docker-registry"), "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while not _listens(self.port):
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            assert time.monotonic() < deadline, "docker-registry doesn't come up"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def blob(self, digest: str) -> Path:
        """Return the file of a blob, ``digest`` being 64 hex digits."""
        return self.folder / "data/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"

    def forget(self, digest: str, repository: str = REPOSITORY) -> None:
        """Lose a blob, as a repository whose storage was cleaned carelessly does."""
        link = self.folder / "data/docker/registry/v2/repositories" / repository / "_layers/sha256" / digest / "link"
        link.unlink()

    def manifest(self, tag: str, repository: str = REPOSITORY) -> bytes:
        """Return the OCI manifest of a tag, asked for without a login."""
        return self.ask("GET", f"/v2/{repository}/manifests/{tag}")

    def put_manifest(self, tag: str, data: bytes, kind: str = OCI_MANIFEST, repository: str = REPOSITORY) -> None:
        """Put an OCI manifest under a tag, whatever it says."""
        self.ask("PUT", f"/v2/{repository}/manifests/{tag}", data, kind)

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = OCI_MANIFEST) -> bytes:
        """Send a request that has to succeed, without TLS or login, and return the answer's body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body=body or None, headers={"Accept": kind, "Content-Type": kind})
            reply = connection.getresponse()
            data = reply.read()
            assert reply.status < 300, (reply.status, data)
            return data


@contextlib.contextmanager
def registry_server(folder: Path, *, auth: str = "", tls: str = "") -> Iterator[RegistryServer]:
    """Run a registry below ``folder``."""
    server = RegistryServer(folder=folder, auth=auth, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def remote_to(host: str, tag: str = "1.0.0", repository: str = REPOSITORY, **options: Any) -> Remote:  # noqa: ANN401 # fields of Remote
    """Return a remote without TLS and with little patience; ``options`` replace fields of :class:`Remote`."""
    reference = Reference(host=host, repository=repository, tag=tag)
    return Remote(reference=reference, **{"plain_http": True, "patience": QUICK, **options})


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# Logins.


def basic_auth(folder: Path) -> str:
    """Return the section for a registry that wants :data:`USER` and :data:`PASSWORD`."""
    path = folder / "htpasswd"
    path.write_bytes(USER.encode() + b":" + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)) + b"\n")
    return f"auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"


def login_file(path: Path, host: str, password: str = PASSWORD) -> Path:
    """Write what ``docker login`` would, and return where."""
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path


class TokenServer:
    """The other half of token authentication: gives signed tokens to whoever has the password or the refresh token.

    ``asked`` holds every request: its scope, and its ``Authorization`` or the form's grant type. ``seconds`` is how
    long a token lives.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        self.seconds = 300
        self._key, certificate = make_certificate("tokens")
        self._chain = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        root = folder / "token-root.pem"
        root.write_bytes(certificate.public_bytes(Encoding.PEM))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self.auth = (
            "auth:\n  token:\n"
            f"    realm: {self.realm}\n    service: test\n    issuer: tokens\n    rootcertbundle: {root}\n"
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()

    def token(self, scope: str) -> str:
        """Return a token for one scope, signed with the key whose certificate the registry has."""
        kind, name, actions = scope.split(":")
        now = int(time.time())
        claims = {
            "iss": "tokens",
            "sub": USER,
            "aud": "test",
            "exp": now + self.seconds,
            "nbf": now - 60,
            "iat": now,
            "jti": str(len(self.asked)),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        head = _url64(json.dumps({"typ": "JWT", "alg": "ES256", "x5c": [self._chain]}).encode())
        text = f"{head}.{_url64(json.dumps(claims).encode())}"
        numbers = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_url64(b''.join(number.to_bytes(32, 'big') for number in numbers))}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self
        login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Authorization") or ""
                self.give(parse_qs(urlsplit(self.path).query)["scope"][0], asked, good=asked == login)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.give(form["scope"][0], form["grant_type"][0], good=form["refresh_token"] == ["refreshing"])

            def give(self, scope: str, asked: str, *, good: bool) -> None:
                server.asked.append((scope, asked))
                data = json.dumps({"token": server.token(scope), "expires_in": server.seconds}).encode()
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", str(len(data) if good else 0))
                self.end_headers()
                self.wfile.write(data if good else b"")

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# Certificates.


def make_certificate(
    name: str, issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None = None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return a key and its certificate: a CA's of its own, or one for 127.0.0.1 by ``issuer``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        builder = builder.add_extension(names, critical=False)
    return key, builder.sign(issuer[0] if issuer else key, hashes.SHA256())


def private_ca(folder: Path) -> tuple[str, Path]:
    """Return the section for a registry with TLS, and the file with the certificate of the CA that signed its own."""
    folder.mkdir(parents=True, exist_ok=True)
    ca = make_certificate("a CA of our own")
    key, certificate = make_certificate("registry", ca)
    (folder / "ca.pem").write_bytes(ca[1].public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(secret)
    section = f"  tls: {{certificate: {folder / 'server.pem'}, key: {folder / 'server.key'}}}\n"
    return section, folder / "ca.pem"
