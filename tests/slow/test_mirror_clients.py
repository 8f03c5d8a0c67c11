"""The clients that people have, unmodified, in a network namespace from which only the mirror can be reached.

Everything is asked twice: from `runtime mirror`, and from nginx with what `runtime mirror --export` wrote.
"""

import configparser
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from uv import find_uv_bin

from bundler.rehearsal.sandbox import find_isolation
from manifests.manifest import ModelEntry
from tests.factories import make_key
from tests.factories_cli import ROOT
from tests.factories_closed import ClosedBundle, closed_files, make_closed_bundle, make_host, program
from tests.factories_models import make_xlmr
from tests.factories_wheels import make_wheel
from tests.slow.conftest import Built

pytestmark = [pytest.mark.slow, pytest.mark.models]
COMMIT: Final = "5617a9f61b028005a4858fdac845db406aefb181"
HERE: Final = "10.77.0.1"
THERE: Final = "10.77.0.2"
PORTS: Final = {"mirror": 8080, "nginx": 8081, "built": 8082}
HOLD: Final = "ip link set lo up && echo ready && exec sleep infinity"
PAGE: Final = (ROOT / "docs/mirror.md").read_text(encoding="utf-8")
DOWNLOAD: Final = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

name, commit = sys.argv[1:]
found = {"main": snapshot_download(name), "pinned": snapshot_download(name, revision=commit)}
found["chosen"] = snapshot_download(name, allow_patterns=["*.json"], local_dir="chosen")
info = HfApi().model_info(name, files_metadata=True)
found["lfs"] = {each.rfilename: each.lfs.sha256 for each in info.siblings}
found["tree"] = sorted(each.path for each in HfApi().list_repo_tree(name, recursive=True))
found["exists"] = [HfApi().file_exists(name, each) for each in ("config.json", "nothing.json")]
found["errors"] = []
for words in ((name, "nothing.json", "main"), (name, "config.json", "v9"), ("Nobody/nothing", "config.json", "main")):
    try:
        hf_hub_download(words[0], words[1], revision=words[2])
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        found["errors"].append(type(error).__name__)
print(json.dumps(found))
"""
LOAD: Final = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer

name = sys.argv[1]
tokens = AutoTokenizer.from_pretrained(name)(["the quick brown fox"], return_tensors="pt")
model = AutoModel.from_pretrained(name).eval()
with torch.no_grad():
    print(json.dumps(model(**tokens).last_hidden_state[0, 0].tolist()))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Two namespaces and a cable between them: ``near`` has the servers, ``far`` the clients; neither has more."""

    near: int
    far: int

    @staticmethod
    def inside(pid: int, *words: str | Path) -> list[str]:
        """Return a command line that runs in the namespace of a process."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [program("nsenter"), "--target", str(pid), *user, "--net", "--", *map(str, words)]

    def client(
        self, home: Path, *words: str | Path, server: str, more: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a client with an empty home and nothing of the tester's environment; it has to succeed."""
        environment = {
            "PATH": os.defpath,
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PIP_CONFIG_FILE": os.devnull,
            "HF_ENDPOINT": f"http://{HERE}:{PORTS[server]}",
            **(more or {}),
        }
        done = subprocess.run(
            self.inside(self.far, *words),
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done


@contextlib.contextmanager
def held(words: Sequence[str]) -> Iterator[int]:
    """Yield the process that holds a namespace open."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    isolation = find_isolation()
    assert isolation.prefix[:1] == ("unshare",), "these tests need unshare: apt-get install util-linux"
    assert shutil.which("ip"), "these tests need ip: apt-get install iproute2"
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(held([*isolation.prefix, "sh", "-c", HOLD]))
        far = stack.enter_context(held(Network.inside(near, "unshare", "-n", "sh", "-c", HOLD)))
        commands = [
            Network.inside(near, "ip", "link", "add", "cable", "type", "veth", "peer", "name", "plug"),
            Network.inside(near, "ip", "link", "set", "plug", "netns", str(far)),
            Network.inside(near, "ip", "addr", "add", f"{HERE}/24", "dev", "cable"),
            Network.inside(near, "ip", "link", "set", "cable", "up"),
            Network.inside(far, "ip", "addr", "add", f"{THERE}/24", "dev", "plug"),
            Network.inside(far, "ip", "link", "set", "plug", "up"),
        ]
        for command in commands:
            subprocess.run(command, check=True)
        yield Network(near=near, far=far)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is served: the model's folder as it was packed, the bundle, and the prefix where it is installed."""

    model: Path
    bundle: ClosedBundle
    prefix: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A bundle with six, click, a wheel that needs both, and a model that came from the Hub."""
    folder = tmp_path_factory.mktemp("site")
    tiny = make_xlmr(folder / "xlmr")
    origin = f"pkg:huggingface/BAAI/bge-m3@{COMMIT}"
    entry = ModelEntry(name="m3", adapter="bge-m3", path="models/m3", format="safetensors", origin=origin)
    files: dict[str, bytes | int] = {
        f"models/m3/{path.relative_to(tiny).as_posix()}": path.read_bytes()
        for path in tiny.rglob("*")
        if path.is_file()
    }
    tool = make_wheel(folder / "wheels", "site-tool", "1.5+cpu", requires=["six", "click>=8"])
    files[f"wheels/{tool.name}"] = tool.read_bytes()
    payload = closed_files("six", "click", extra=files, models=(entry,))
    bundle = make_closed_bundle(folder / "bundle", make_key(folder / "key"), files=payload, models=(entry,))
    host = make_host(folder / "home")
    words = ("install", bundle.tar, "--prefix", folder / "prefix", "--trust", bundle.trust, "--no-smoke")
    done = host.runtime(bundle.pyz, *words)
    assert done.returncode == 0, done.stderr
    return Site(model=tiny, bundle=bundle, prefix=folder / "prefix")


@pytest.fixture(scope="module")
def mirror_log(network: Network, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The mirror runs, out of the bundle's own runtime.pyz; this is its access log."""
    folder = tmp_path_factory.mktemp("mirror")
    with mirroring(network, folder, site.bundle.pyz, site.prefix, "mirror") as log:
        yield log


@contextlib.contextmanager
def mirroring(network: Network, folder: Path, pyz: Path, prefix: Path, name: str) -> Iterator[Path]:
    """Have a mirror that answers; yield its access log."""
    log = folder / "access.log"
    words = ["mirror", "--prefix", prefix, "--host", HERE, "--port", str(PORTS[name])]
    command = [make_host(folder / "home").python, "-I", "-S", pyz, *words]
    with log.open("w") as stream, running(network, [*map(str, command)], stream.fileno()):
        wait_for(network, name)
        yield log


@pytest.fixture(scope="module")
def nginx_log(network: Network, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The web server serves an export, with the configuration that came with it; this is its access log."""
    assert shutil.which("nginx"), "these tests need nginx: apt-get install nginx-light"
    folder = tmp_path_factory.mktemp("nginx")
    words: list[str | Path] = ["mirror", "--prefix", site.prefix, "--export", folder / "site", "--host", HERE]
    host = make_host(folder / "home")
    done = host.runtime(site.bundle.pyz, *words, "--port", str(PORTS["nginx"]))
    assert done.returncode == 0, done.stderr
    user = "user root;\n" if os.geteuid() == 0 else ""  # the tests' folders are their owner's alone
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/pid;\nevents {{ }}\nhttp {{\n  access_log {folder}/access.log;\n"
        f"  client_body_temp_path {folder}/body;\n  include {folder}/site/nginx.conf;\n}}\n"
    )
    command = [program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    with (folder / "errors").open("w") as stream, running(network, command, stream.fileno()):
        wait_for(network, "nginx")
        yield folder / "access.log"


@contextlib.contextmanager
def running(network: Network, command: list[str], log: int) -> Iterator[None]:
    with subprocess.Popen(Network.inside(network.near, *command), stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(network: Network, server: str) -> None:
    url = f"http://{HERE}:{PORTS[server]}/simple/"
    for _ in range(200):
        command = Network.inside(network.far, sys.executable, "-c", f"import urllib.request as u; u.urlopen('{url}')")
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    pytest.fail(f"{server} does not answer")


@pytest.fixture(params=["mirror", "nginx"])
def server(request: pytest.FixtureRequest) -> str:
    """Who serves; running."""
    request.getfixturevalue(f"{request.param}_log")
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def block(language: str, server: str) -> str:
    """Return a block of the page about the mirror, with the address of the one here."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].replace("mirror.site:8080", f"{HERE}:{PORTS[server]}").replace("mirror.site", HERE)


def make_venv(network: Network, home: Path, server: str) -> Path:
    network.client(home, find_uv_bin(), "venv", "--python", sys.executable, home / "venv", server=server)
    return home / "venv/bin/python"


def installed(python: Path) -> set[str]:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    return set(subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split())


WANTED: Final = {"site-tool==1.5+cpu", "six==1.17.0", "click==8.3.1"}


def test_pip_installs_with_the_configuration_of_the_page(network: Network, home: Path, server: str) -> None:
    python = make_venv(network, home, server)
    config = configparser.ConfigParser()
    config.read_string(block("ini", server))
    # As variables, because pip would also read the configuration of this host.
    words = {f"PIP_{key.upper().replace('-', '_')}": value for key, value in config["global"].items()}
    assert set(words) == {"PIP_INDEX_URL", "PIP_TRUSTED_HOST"}
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check"]
    network.client(home, *pip, "site_tool", server=server, more=words)
    assert installed(python) == WANTED


def test_uv_installs_with_the_configuration_of_the_page(network: Network, home: Path, server: str) -> None:
    python = make_venv(network, home, server)
    text = block("toml", server)
    assert tomllib.loads(text)["index"][0]["default"] is True
    (home / ".config/uv").mkdir(parents=True)
    (home / ".config/uv/uv.toml").write_text(text)
    network.client(home, find_uv_bin(), "pip", "install", "--python", python, "site-tool", server=server)
    assert installed(python) == WANTED


def test_uv_resolves_from_metadata_alone(network: Network, home: Path, site: Site, mirror_log: Path) -> None:
    before = len(mirror_log.read_text().splitlines())
    (home / "uv.toml").write_text(block("toml", "mirror"))
    (home / "in").write_text("site-tool\n")
    words: list[str | Path] = [
        find_uv_bin(),
        "pip",
        "compile",
        "--config-file",
        home / "uv.toml",
        "--generate-hashes",
        home / "in",
    ]
    done = network.client(home, *words, server="mirror")
    asked = " ".join(mirror_log.read_text().splitlines()[before:])
    assert re.search(r'"GET /wheels/site_tool-1\.5%2[Bb]cpu-py3-none-any\.whl\.metadata HTTP/1\.1" 200', asked)
    assert not re.search(r'"GET \S+\.whl HTTP', asked)
    for entry in site.bundle.manifest.files:
        if entry.kind == "wheel" and not entry.path.startswith("wheels/sealift"):
            assert f"--hash=sha256:{entry.sha256}" in done.stdout


def test_uv_syncs_locked_hashes(network: Network, home: Path, site: Site, server: str) -> None:
    python = make_venv(network, home, server)
    (entry,) = [entry for entry in site.bundle.manifest.files if entry.path.startswith("wheels/six-")]
    (home / "lock").write_text(f"six==1.17.0 --hash=sha256:{entry.sha256}\n")
    (home / "uv.toml").write_text(block("toml", server))
    words: list[str | Path] = [
        find_uv_bin(),
        "pip",
        "sync",
        "--config-file",
        home / "uv.toml",
        "--python",
        python,
        "--require-hashes",
    ]
    network.client(home, *words, home / "lock", server=server)
    assert installed(python) == {"six==1.17.0"}


def tree_digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.relative_to(folder).parts
    }


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "m3"])
def test_huggingface_hub_downloads(network: Network, home: Path, site: Site, server: str, name: str) -> None:
    done = network.client(home, sys.executable, "-c", DOWNLOAD, name, COMMIT, server=server)
    found: dict[str, Any] = json.loads(done.stdout)
    expected = tree_digests(site.model)
    assert found["main"] == found["pinned"]
    assert found["main"].endswith(f"/snapshots/{COMMIT}")
    assert tree_digests(Path(found["main"])) == expected
    assert tree_digests(home / "chosen") == {path: sha for path, sha in expected.items() if path.endswith(".json")}
    assert found["lfs"] == expected
    assert [path for path in found["tree"] if path in expected] == sorted(expected)
    assert found["exists"] == [True, False]
    assert [error.removeprefix("Remote") for error in found["errors"]] == [
        "EntryNotFoundError",
        "RevisionNotFoundError",
        "RepositoryNotFoundError",
    ]
    blobs = {path.name for path in (Path(found["main"]).parents[1] / "blobs").iterdir()}
    assert blobs == set(expected.values())


def test_transformers_loads_by_the_hub_s_name(network: Network, home: Path, site: Site, server: str) -> None:
    far = network.client(home, sys.executable, "-c", LOAD, "BAAI/bge-m3", server=server)
    near = subprocess.run(
        [sys.executable, "-c", LOAD, str(site.model)], capture_output=True, text=True, check=True, cwd=home
    )
    vector = json.loads(far.stdout)
    assert len(vector) == 32
    assert vector == json.loads(near.stdout)


def test_the_client_reaches_nothing_else(network: Network) -> None:
    done = subprocess.run(Network.inside(network.far, "ip", "-json", "addr"), capture_output=True, check=True)
    found = {each["ifname"]: [one["local"] for one in each["addr_info"]] for each in json.loads(done.stdout)}
    assert found.keys() == {"lo", "plug"}
    assert THERE in found["plug"]
    routes = subprocess.run(Network.inside(network.far, "ip", "-json", "route"), capture_output=True, check=True)
    assert [route["dst"] for route in json.loads(routes.stdout)] == ["10.77.0.0/24"]


def test_a_whole_environment_and_its_model(network: Network, home: Path, built: Built) -> None:
    """PyTorch, transformers and a model, on a machine that had nothing but uv and a Python."""
    prefix, pyz = built.folder / "mirrored", built.kit / "runtime.pyz"
    words = ("install", built.bundle, "--prefix", prefix, "--trust", built.kit / "allowed_signers", "--no-smoke")
    done = make_host(home.parent / "operator").runtime(pyz, *words)
    assert done.returncode == 0, done.stderr
    with mirroring(network, home.parent, pyz, prefix, "built"):
        python = make_venv(network, home, "built")
        (home / "uv.toml").write_text(block("toml", "built"))
        install = [find_uv_bin(), "pip", "install", "--config-file", str(home / "uv.toml"), "--python", str(python)]
        network.client(home, *install, "torch", "transformers", server="built")
        assert "torch==2.13.0+cpu" in installed(python)
        far = network.client(home, python, "-I", "-c", LOAD, "bert", server="built")
    vector = json.loads(far.stdout)
    near = subprocess.run(
        [sys.executable, "-c", LOAD, built.folder / "bert"], capture_output=True, check=True, cwd=home
    )
    assert vector == pytest.approx(json.loads(near.stdout), abs=1e-6)
