"""``runtime repair``: a damaged environment is made anew from the release's own wheels, or stays out of use."""

import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.manifest import ModelEntry
from runtime.steps import REPAIR_STEPS
from tests.factories import Key, tree_of
from tests.factories_closed import ClosedBundle, Host, closed_files, flip_bit, make_closed_bundle
from tests.factories_kill import Installer, clone, essence
from tests.factories_wheels import make_wheel

SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
STOPPED = REPAIR_STEPS[:-1]


@pytest.fixture
def prefix(tmp_path: Path, installed: Path) -> Path:
    """A copy of a prefix where the first bundle is live, with environments that say where they are."""
    prefix = clone(installed, tmp_path / "prefix")
    for path in (prefix / "etc").iterdir():
        path.write_bytes(path.read_bytes().replace(str(installed).encode(), str(prefix).encode()))
    return prefix


@pytest.fixture
def undisturbed(installed: Path) -> dict[str, tuple[str, str]]:
    """What an install makes when nothing is damaged."""
    return essence(installed)


def venv_of(prefix: Path) -> Path:
    return (prefix / "current").resolve() / "venv"


def edit_in_place(path: Path) -> None:
    """Change a file without giving it a new inode, so that uv's cache, a hard link of it, changes too."""
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"import os")


def damage_everything(venv: Path) -> None:
    edit_in_place(venv / SITE / "six.py")
    (venv / SITE / "runtime/layout.py").unlink()
    (venv / SITE / "sitecustomize.py").write_text("x = 1\n")
    (venv / SITE / "evil.pth").write_text("import os\n")
    (venv / SITE / "__pycache__").mkdir()
    (venv / SITE / "__pycache__/six.cpython-311.pyc").write_bytes(b"x")
    (venv / "bin/runtime").chmod(0o4755)


FOUND = [
    f"venv/{SITE}/runtime/layout.py: missing",
    f"venv/{SITE}/__pycache__/six.cpython-311.pyc: no wheel brought it",
    f"venv/{SITE}/evil.pth: no wheel brought it",
    f"venv/{SITE}/sitecustomize.py: no wheel brought it",
    "venv/bin/runtime: mode 4755, expected 0755",
    f"venv/{SITE}/six.py: content changed",
]


def repair(host: Host, bundle: ClosedBundle, prefix: Path, *words: str | Path) -> tuple[int, dict[str, Any]]:
    done = host.runtime(bundle.pyz, "repair", "--json", "--prefix", prefix, *words)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def check_whole(host: Host, bundle: ClosedBundle, prefix: Path) -> None:
    for depth in ("--deep", "--quick"):
        done = host.runtime(bundle.pyz, "verify", "--prefix", prefix, "--trust", bundle.trust, depth)
        assert done.returncode == 0, done.stdout
    answer = host.run(prefix / "current/venv/bin/python", "-I", "-c", "import six; print(six.__name__)")
    assert answer.stdout == "six\n"


def test_everything_at_once(
    prefix: Path, host: Host, first: ClosedBundle, undisturbed: dict[str, tuple[str, str]]
) -> None:
    name = (prefix / "current").readlink().name
    before = json.loads((prefix / "current/receipt.json").read_text())
    damage_everything(venv_of(prefix))
    code, answer = repair(host, first, prefix)
    assert (code, answer["rebuilt"], answer["environments"]) == (0, [name], {name: FOUND})
    check_whole(host, first, prefix)
    assert essence(prefix) == undisturbed
    after = json.loads((prefix / "current/receipt.json").read_text())
    assert {**after, "stats": {}} == {**before, "stats": {}}, "also when it was installed, and from which interpreter"
    assert after["stats"].keys() == before["stats"].keys()
    log = (prefix / "var/logs/releases.log").read_text().splitlines()
    assert log[-1].endswith(f"Z repair {name}: environment, 6 problems")
    assert repair(host, first, prefix) == (
        0,
        {
            "blocked": [],
            "damaged": [],
            "environments": {},
            "found": 0,
            "healed": [],
            "put_back": [],
            "rebuilt": [],
        },
    )


def unlink_config(venv: Path) -> None:
    (venv / "pyvenv.cfg").unlink()


def open_folder(venv: Path) -> None:
    (venv / SITE).chmod(0o777)


def link_elsewhere(venv: Path) -> None:
    venv.rename(venv.parent.parent.parent / "elsewhere")
    venv.symlink_to(venv.parent.parent.parent / "elsewhere")


def replace_python(venv: Path) -> None:
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to("/bin/sh")


def cut_receipt(venv: Path) -> None:
    path = venv.parent / "receipt.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (unlink_config, "venv/pyvenv.cfg: missing"),
        (open_folder, f"venv/{SITE}/: mode 0777, everyone may write there"),
        (link_elsewhere, "venv: a link, expected a folder"),
        (replace_python, "venv/bin/python: a link to /bin/sh, expected "),
        (cut_receipt, "/receipt.json: not JSON: "),
    ],
)
def test_one_at_a_time(
    *, prefix: Path, host: Host, first: ClosedBundle, spoil: Callable[[Path], None], problem: str
) -> None:
    spoil(venv_of(prefix))
    before = tree_of(prefix)
    listed = host.runtime(first.pyz, "repair", "--prefix", prefix, "--list")
    assert listed.returncode == 5
    assert problem in listed.stdout
    assert listed.stderr.endswith("hint: to make them anew, the same without --list\n")
    assert tree_of(prefix) == before
    code, answer = repair(host, first, prefix)
    assert (code, len(answer["rebuilt"])) == (0, 1)
    check_whole(host, first, prefix)


def test_words_for_a_person(prefix: Path, host: Host, first: ClosedBundle) -> None:
    name = (prefix / "current").readlink().name
    (venv_of(prefix) / SITE / "evil.pth").write_text("")
    done = host.runtime(first.pyz, "repair", "--prefix", prefix)
    assert done.returncode == 0
    assert done.stdout == (
        f"# {name}: venv/{SITE}/evil.pth: no wheel brought it\n# made anew: the environment of {name}\n"
        "# 0 damaged chunks found, 0 remain\n"
    )


def test_what_is_in_use_stays(prefix: Path, host: Host, first: ClosedBundle) -> None:
    release = (prefix / "current").resolve()
    (venv_of(prefix) / SITE / "evil.pth").write_text("")
    before = tree_of(release)
    descriptor = os.open(release, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        code, answer = repair(host, first, prefix)
    finally:
        os.close(descriptor)
    words = "its environment is damaged and in use: stop the server that runs from it, then repair again"
    assert (code, answer["rebuilt"], answer["blocked"]) == (5, [], [f"{release.name}: {words}"])
    assert tree_of(release) == before
    assert repair(host, first, prefix)[0] == 0


def test_wheels_come_first(prefix: Path, host: Host, first: ClosedBundle) -> None:
    wheel = next((prefix / "current/wheels").glob("six-*.whl"))
    wheel.chmod(0o644)
    flip_bit(wheel, 300)
    wheel.chmod(0o444)
    (venv_of(prefix) / SITE / "six.py").unlink()
    code, answer = repair(host, first, prefix)
    name = (prefix / "current").readlink().name
    assert (code, answer["rebuilt"]) == (5, [])
    assert answer["blocked"] == [f"{name}: its environment needs wheels that are damaged themselves"]
    assert not (venv_of(prefix) / SITE / "six.py").exists()
    code, answer = repair(host, first, prefix, "--from", first.tar)
    assert (code, answer["healed"], answer["rebuilt"]) == (0, [f"wheels/{wheel.name}"], [name])
    check_whole(host, first, prefix)


def test_cached_bytecode_goes(prefix: Path, host: Host, first: ClosedBundle) -> None:
    folder = prefix / "var/cache/bytecode" / (prefix / "current").readlink().name
    cached = next(folder.rglob("layout.*.pyc"))
    cached.write_bytes(cached.read_bytes()[:40])
    listed = repair(host, first, prefix, "--list")
    assert listed[0] == 0
    assert cached.exists()
    assert repair(host, first, prefix)[0] == 0
    assert list((prefix / "var/cache/bytecode").iterdir()) == []


@pytest.mark.parametrize("step", REPAIR_STEPS)
def test_a_kill_at_every_step(
    *, prefix: Path, host: Host, first: ClosedBundle, undisturbed: dict[str, tuple[str, str]], step: str
) -> None:
    installer = Installer(host=host)
    damage_everything(venv_of(prefix))
    name = (prefix / "current").readlink().name
    killed = host.run(*installer.repair_command(first, prefix, step))
    assert killed.returncode == -9, killed.stderr

    status = host.runtime(first.pyz, "status", "--prefix", prefix, "--json")
    document = json.loads(status.stdout)
    verified = host.runtime(first.pyz, "verify", "--prefix", prefix)
    if step in STOPPED:
        assert (document["live"], document["releases"]) == (None, {name: "in repair"})
        assert status.stderr == f"hint: a repair was not ended: runtime repair --prefix {prefix}\n"
        assert verified.returncode == 5
        assert verified.stderr == (
            f"error: {prefix}/releases/{name}: its repair has not come to its end, so nothing is live\n"
            f"hint: runtime repair --prefix {prefix}\n"
        )
    else:
        assert document["live"] == name
        assert verified.returncode == 0, verified.stdout
    code, answer = repair(host, first, prefix)
    assert (code, answer["rebuilt"]) == (0, [name] if step in STOPPED else [])
    check_whole(host, first, prefix)
    assert essence(prefix) == undisturbed


@pytest.fixture
def stopped(prefix: Path, host: Host, first: ClosedBundle) -> Path:
    """A prefix where a repair was killed when the old environment was gone and the new one not there."""
    damage_everything(venv_of(prefix))
    assert host.run(*Installer(host=host).repair_command(first, prefix, "cache dropped")).returncode == -9
    return prefix


def test_gc_and_another_install_leave_a_stopped_repair(
    stopped: Path, host: Host, first: ClosedBundle, second: ClosedBundle
) -> None:
    name = (stopped / "current").readlink().name
    collected = host.runtime(first.pyz, "gc", "--prefix", stopped, "--json")
    assert json.loads(collected.stdout)["kept"] == {name: "in repair"}
    assert json.loads(collected.stdout)["blobs"] == 0
    done = Installer(host=host).run(second, stopped)
    assert done.status == 0, done.words
    assert repair(host, first, stopped)[1]["rebuilt"] == [name]
    back = host.runtime(first.pyz, "rollback", "--prefix", stopped)
    assert back.stdout == f"{name} is live again\n", "it was what was live before"
    check_whole(host, first, stopped)


def test_the_same_install_ends_it_too(
    stopped: Path, host: Host, first: ClosedBundle, undisturbed: dict[str, tuple[str, str]]
) -> None:
    words = ("install", first.tar, "--prefix", stopped, "--trust", first.trust, "--json")
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] is True
    check_whole(host, first, stopped)
    assert essence(stopped) == undisturbed


def test_uninstall_of_a_stopped_repair(stopped: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "uninstall", "--prefix", stopped, "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)["left"]) == (0, [])
    assert not stopped.exists()


def test_rollback_from_a_stopped_repair(prefix: Path, host: Host, first: ClosedBundle, second: ClosedBundle) -> None:
    old = (prefix / "current").readlink().name
    assert Installer(host=host).run(second, prefix).status == 0
    (venv_of(prefix) / SITE / "evil.pth").write_text("")
    assert host.run(*Installer(host=host).repair_command(second, prefix, "receipt aside")).returncode == -9
    back = host.runtime(first.pyz, "rollback", "--prefix", prefix)
    assert (back.returncode, back.stdout) == (0, f"{old} is live again\n"), back.stderr


def test_an_environment_that_is_refused_stays_out_of_use(tmp_path: Path, host: Host, closed_key: Key) -> None:
    broken = make_wheel(tmp_path / "w", "numpy", "0.1", files={"numpy/__init__.py": b"raise ImportError('no')\n"})
    model = ModelEntry(name="m", adapter="hcx", path="models/m", format="safetensors", origin="dir")
    files = closed_files(models=(model,), extra={f"wheels/{broken.name}": broken.read_bytes(), "models/m/a": b""})
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, files=files, models=(model,))
    prefix = tmp_path / "prefix"
    words = ("install", bundle.tar, "--prefix", prefix, "--trust", bundle.trust)
    refused = host.runtime(bundle.pyz, *words)
    assert refused.returncode == 8
    assert "  import numpy: ImportError: no" in refused.stderr
    assert host.runtime(bundle.pyz, *words, "--no-smoke").returncode == 0
    name = (prefix / "current").readlink().name
    (venv_of(prefix) / SITE / "evil.pth").write_text("")
    done = host.runtime(bundle.pyz, "repair", "--prefix", prefix)
    assert done.returncode == 8
    assert done.stderr.endswith(
        f"hint: {name} is out of use until `runtime repair` succeeds; the release before: runtime rollback\n"
    )
    status = json.loads(host.runtime(bundle.pyz, "status", "--prefix", prefix, "--json").stdout)
    assert status["releases"] == {name: "in repair"}
    code, answer = repair(host, bundle, prefix, "--no-smoke")
    assert (code, answer["rebuilt"]) == (0, [name])
    done = host.runtime(bundle.pyz, "verify", "--prefix", prefix, "--no-models")
    assert done.returncode == 0, done.stdout
