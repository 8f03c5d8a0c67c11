"""What Python's ``oras`` pulls of a pushed bundle is a folder that the runtime accepts."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import pytest

from bundler.publishing.registries import push_bundle
from manifests.bundle import verify_content, verify_trust
from manifests.digests import CHUNK_SIZE
from manifests.files import locked
from manifests.medium import open_medium
from manifests.pieces import Silent
from tests.factories import NOW, SMALL_FILES, Content, Key, make_bundle, tree_of, unpack_bundle
from tests.factories_closed import cache_folder, program
from tests.factories_registry import REPOSITORY, registry_server, remote_to

ORAS: Final = "oras==0.2.43"
PULL: Final = """
import sys
import oras.client
client = oras.client.OrasClient(insecure=True, hostname=sys.argv[1])
client.pull(target=f"{sys.argv[1]}/{sys.argv[2]}", outdir=sys.argv[3])
"""
FILES: Final[dict[str, Content]] = {
    **SMALL_FILES,
    "models/big/weights.bin": CHUNK_SIZE + 5,
    "models/copy/config.json": b"{}\n",
}


def oras_python() -> Path:
    """Return the Python of a venv that has oras; made once per machine, outside of the clone."""
    folder = cache_folder() / ORAS.replace("==", "-")
    with locked(folder.with_name("oras.lock")):
        if not (folder / "ready").exists():
            venv.create(folder, with_pip=True, clear=True)
            command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", ORAS]
            subprocess.run(command, check=True, capture_output=True)
            (folder / "ready").touch()
    return folder / "bin/python"


@pytest.mark.slow
def test_oras_pulls_a_folder_that_verifies(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, FILES, key=key, executable=["bootstrap/install.sh"])
    with registry_server(tmp_path / "registry") as server:
        with open_medium(tar) as medium:
            push_bundle(medium, remote_to(server.host), Silent(), {"HOME": str(tmp_path)})
        words = [str(oras_python()), "-c", PULL, server.host, f"{REPOSITORY}:1.0.0", str(tmp_path / "pulled")]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tree_of(tmp_path / "pulled") == tree_of(unpack_bundle(tar, tmp_path / "unpacked"))
    with open_medium(tmp_path / "pulled") as folder:
        bundle = verify_trust(folder, key.trust, now=NOW)
        verify_content(folder, bundle.manifest, Silent(), deep=True)


LIMITED: Final = """
import sys
from pathlib import Path
from bundler.publishing.pulls import pull_bundle
from bundler.publishing.registries import push_bundle
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.reference import Reference, Remote

host, tar, folder = sys.argv[1:]
remote = Remote(reference=Reference(host=host, repository="a/b", tag="1"), plain_http=True)
with open_medium(Path(tar)) as medium:
    push_bundle(medium, remote, Silent(), {"HOME": folder})
with open_medium(remote) as medium:
    pull_bundle(medium, Path(folder), Silent())
status = Path("/proc/self/status").read_text()  # ru_maxrss would count whoever started this, too
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
def test_memory_stays_small_however_large_a_file_is(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, {"models/big/weights.bin": 10 * CHUNK_SIZE}, key=key)
    with registry_server(tmp_path / "registry") as server:
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, server.host, tar, tmp_path / "pulled"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150 * 1024  # kilobytes, for 640 MiB
    (pulled,) = (tmp_path / "pulled").iterdir()
    assert subprocess.run([program("cmp"), tar, pulled], check=False).returncode == 0
