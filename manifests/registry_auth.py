"""Logins for registries: from the files that ``docker login`` and ``podman login`` write, and tokens by them.

Nothing is asked for, stored or printed here, and the files are looked at only when a registry answers 401.
"""

import base64
import binascii
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

from manifests.errors import SourceError, UsageError
from manifests.fields import shown
from manifests.reference import Reference, Remote
from manifests.registry_http import Reply, Wire, host_of, require_address

_MOST: Final = 1024 * 1024
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HELPER_SECONDS: Final = 60
_CHALLENGE: Final = re.compile(r'([a-zA-Z]+)="((?:[^"\\]|\\.)*)"|([a-zA-Z]+)=([^\s,"]+)')
_LONGEST: Final = 24 * 3600
_EARLIER: Final = 20.0
"""Seconds before its end in which a token isn't used any more: a request takes a while to arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """User and password; or an identity token, which gives access tokens; or an access token itself."""

    user: str = ""
    password: str = ""
    identity_token: str = ""
    access_token: str = ""

    def __repr__(self) -> str:
        return f"Login(user={self.user!r})"  # so that no message or traceback shows a secret

    @property
    def basic(self) -> str:
        """The value of ``Authorization`` by RFC 7617, empty without a user."""
        text = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return f"Basic {text}" if self.user else ""


def find_login(reference: Reference, environment: Mapping[str, str]) -> Login | None:
    """Return the login for a registry, from the first file that has one, or None.

    ``$REGISTRY_AUTH_FILE`` alone if it is set; else podman's and skopeo's ``containers/auth.json``, then Docker's
    ``config.json``. The most specific entry counts: host and repository, then parts of it, then the host.

    Raises:
        UsageError: A file isn't what it should be, or names a credential helper that can't be run.
    """
    for path in _files(environment):
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UsageError(f"{path}: can't be read: {error.strerror}", hint="it holds the login") from None
        login = _login_in(path, _document(path, text), reference)
        if login is not None:
            return login
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    if chosen := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(chosen)
        return
    home = Path(environment.get("HOME") or "/")
    if run := environment.get("XDG_RUNTIME_DIR"):
        yield Path(run) / "containers" / "auth.json"
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json"
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _document(path: Path, text: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: is not a JSON object", hint="docker login HOST writes it")
    return document


def _login_in(path: Path, document: Mapping[str, object], reference: Reference) -> Login | None:
    helpers, auths = _table(document, "credHelpers"), _table(document, "auths")
    for key in _keys(reference):
        if isinstance(name := helpers.get(key), str):
            return _ask_helper(path, name, key)
        if isinstance(entry := auths.get(key), dict) and (login := _entry(path, key, entry)) is not None:
            return login
    store = document.get("credsStore")
    return _ask_helper(path, store, reference.host) if isinstance(store, str) and store else None


def _keys(reference: Reference) -> Iterator[str]:
    parts = [reference.host, *reference.repository.split("/")]
    for length in range(len(parts), 0, -1):
        yield "/".join(parts[:length])
    for scheme in ("https", "http"):
        yield from (f"{scheme}://{reference.host}{end}" for end in ("", "/", "/v1/", "/v2/"))


def _table(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _entry(path: Path, key: str, entry: Mapping[str, object]) -> Login | None:
    identity, access, auth = (str(entry.get(name) or "") for name in ("identitytoken", "registrytoken", "auth"))
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise UsageError(f"{path}: auths.{key}.auth is not base64 of USER:PASSWORD", hint="docker login HOST")
    found = Login(user=user, password=password, identity_token=identity, access_token=access)
    return found if user or identity or access else None


def _ask_helper(path: Path, name: str, server: str) -> Login | None:
    """Run ``docker-credential-NAME get``, as Docker does: the server on its stdin, JSON on its stdout."""
    program = f"docker-credential-{name}"
    if not _HELPER.fullmatch(name):
        raise UsageError(f"{path}: {shown(name)} can't be the name of a credential helper")
    try:
        done = subprocess.run([program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS)  # noqa: PLW1510 # its status is looked at
    except FileNotFoundError:
        hint = f"install {program}, or put the login itself into a file: REGISTRY_AUTH_FILE=FILE"
        raise UsageError(f"{path}: names the credential helper {program}, which isn't there", hint=hint) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{program}: can't be run: {error}") from None
    if done.returncode:
        words = (done.stdout + done.stderr).decode(errors="replace").strip()
        if "not found" in words:
            return None
        raise UsageError(f"{program} get: exit status {done.returncode}: {shown(words)}")
    answer = _document(Path(program), done.stdout)
    user, secret = str(answer.get("Username") or ""), str(answer.get("Secret") or "")
    return Login(identity_token=secret) if user == "<token>" else Login(user=user, password=secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a registry asks for by ``WWW-Authenticate``: ``basic`` or ``bearer``, and where a token is had."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenges(values: list[str]) -> list[Challenge]:
    """Parse the values of ``WWW-Authenticate`` (RFC 9110, 11.6.1), one challenge each; unknown schemes are left out."""
    found = []
    for value in values:
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() in {"basic", "bearer"}:
            pairs = {(m[1] or m[3]).lower(): m[2] if m[1] else m[4] for m in _CHALLENGE.finditer(rest)}
            known = {name: pairs.get(name, "") for name in ("realm", "service", "scope")}
            found.append(Challenge(scheme=scheme.lower(), **known))
    return found


class Authorizer:
    """Finds the value of ``Authorization`` for one repository, and renews it.

    Args:
        remote: Which registry and repository.
        wire: Sends the requests for tokens.
        actions: What a token has to allow: ``pull``, or ``pull,push``.
        environment: Where the files with logins are looked for; the process' own without one.
    """

    def __init__(self, remote: Remote, wire: Wire, actions: str, environment: Mapping[str, str] | None = None) -> None:
        self._remote, self._reference = remote, remote.reference
        self._wire, self._actions = wire, actions
        self._environment = os.environ if environment is None else environment
        self._lock = threading.Lock()
        self._value, self._until = "", float("inf")
        self._challenge: Challenge | None = None

    def header(self) -> str:
        """Return the value to send now, empty while nobody asked for one."""
        with self._lock:
            if self._challenge is not None and time.monotonic() > self._until:
                self._renew(self._challenge)
            return self._value

    def challenged(self, reply: Reply, sent: str) -> None:
        """Take up a 401: get what it asks for. ``sent`` is what was sent with the request.

        Raises:
            SourceError: There is no login, or it isn't accepted.
        """
        with self._lock:
            if sent != self._value:
                return  # another thread was faster
            challenges = parse_challenges(reply.headers("WWW-Authenticate"))
            if not challenges:
                raise SourceError(f"{self._reference.host}: asks for a login in a way that isn't known here")
            chosen = min(challenges, key=lambda challenge: challenge.scheme != "bearer")
            if sent and chosen.scheme == "basic":
                raise self._refused("the login isn't accepted")
            self._challenge = chosen
            self._renew(chosen)
            if sent == self._value:
                raise self._refused("the token isn't accepted")

    def _renew(self, challenge: Challenge) -> None:
        login = find_login(self._reference, self._environment)
        if challenge.scheme == "basic":
            if login is None or not login.basic:
                raise self._refused("it asks for a login, and none was found")
            self._value = login.basic
        elif login is not None and login.access_token:
            self._value = f"Bearer {login.access_token}"
        else:
            token, seconds = self._fetch_token(challenge, login)
            self._value, self._until = f"Bearer {token}", time.monotonic() + max(seconds - _EARLIER, 1)

    def _fetch_token(self, challenge: Challenge, login: Login | None) -> tuple[str, float]:
        """Ask the token server (CNCF distribution, "Token authentication" and its OAuth2 form)."""
        require_address(challenge.realm, self._reference.host)
        if urlsplit(challenge.realm).scheme not in ({"https", "http"} if self._remote.plain_http else {"https"}):
            msg = f"{self._reference.host}: names a token server without TLS, or none: {shown(challenge.realm)}"
            raise SourceError(msg)
        own = f"repository:{self._reference.repository}:"
        # All that will be needed at once, not a new token for the first write.
        scope = f"{own}{self._actions}" if challenge.scope.startswith(own) else challenge.scope or own + self._actions
        fields = {"service": challenge.service, "scope": scope}
        if login is not None and login.identity_token:
            more = {"grant_type": "refresh_token", "refresh_token": login.identity_token, "client_id": "sealift"}
            data, kind = urlencode({**fields, **more}).encode(), "application/x-www-form-urlencoded"
            reply = self._wire.send("POST", challenge.realm, {"Content-Type": kind}, data)
        else:
            separator = "&" if urlsplit(challenge.realm).query else "?"
            headers = {"Authorization": login.basic} if login is not None else {}
            reply = self._wire.send("GET", f"{challenge.realm}{separator}{urlencode(fields)}", headers)
        try:
            return self._token_in(reply, challenge)
        finally:
            reply.close()

    def _token_in(self, reply: Reply, challenge: Challenge) -> tuple[str, float]:
        server = host_of(challenge.realm)
        if reply.status in {400, 401, 403}:
            raise self._refused(f"the token server {server} refuses the login ({reply.status})")
        try:
            answer = json.loads(reply.read(_MOST)) if reply.status == 200 else None
        except (ValueError, RecursionError):
            answer = None
        token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise SourceError(f"{self._reference.host}: its token server {server} gives no token ({reply.status})")
        seconds = answer.get("expires_in")
        # 60 is the default of that specification.
        return token, float(min(seconds, _LONGEST)) if isinstance(seconds, int) else 60.0

    def _refused(self, why: str) -> SourceError:
        host = self._reference.host
        hint = f"podman login {host}, docker login {host}, or REGISTRY_AUTH_FILE=FILE; then the same again"
        return SourceError(f"{host}/{self._reference.repository}: {why}", hint=hint)
