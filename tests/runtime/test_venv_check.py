"""Every kind of change to an installed environment is found, and nothing is reported of one that is whole."""

import base64
import hashlib
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import IntegrityError
from runtime.layout import Release
from runtime.venv_check import check_venv, expected_files, write_scripts
from tests.factories import Key
from tests.factories_closed import ClosedBundle, Host, make_closed_bundle, wheel_named

SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
CHANGE = Callable[[Path], None]


@pytest.fixture
def release(installed: Path, tmp_path: Path) -> Release:
    """A copy of the installed release that a test may change."""
    source = (installed / "current").resolve()
    return Release(path=Path(shutil.copytree(source, tmp_path / "releases" / source.name, symlinks=True)))


def problems_after(release: Release, change: CHANGE, bundle: ClosedBundle) -> list[str]:
    assert check_venv(release, bundle.manifest) == []
    change(release.venv)
    return check_venv(release, bundle.manifest)


def edit(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def edit_with_record(venv: Path) -> None:
    module = venv / SITE / "six.py"
    content = module.read_bytes() + b"\nimport os\n"
    edit(module, content)
    record = next((venv / SITE).glob("six-*.dist-info/RECORD"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    lines = [line for line in record.read_text().splitlines() if not line.startswith("six.py,")]
    edit(record, "\n".join([f"six.py,sha256={digest},{len(content)}", *lines, ""]).encode())


def plant(name: str, content: bytes = b"x\n") -> CHANGE:
    def change(venv: Path) -> None:
        (venv / name).parent.mkdir(parents=True, exist_ok=True)
        (venv / name).write_bytes(content)

    return change


def relink(name: str, target: str) -> CHANGE:
    def change(venv: Path) -> None:
        (venv / name).unlink()
        (venv / name).symlink_to(target)

    return change


def append(name: str, content: bytes) -> CHANGE:
    return lambda venv: edit(venv / name, (venv / name).read_bytes() + content)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (append(f"{SITE}/six.py", b"#"), f"venv/{SITE}/six.py: content changed"),
        (edit_with_record, f"venv/{SITE}/six.py: content changed"),
        (plant(f"{SITE}/evil.pth", b"import os\n"), f"venv/{SITE}/evil.pth: no wheel brought it"),
        (plant(f"{SITE}/_virtualenv.pth"), f"venv/{SITE}/_virtualenv.pth: no wheel brought it"),
        (plant(f"{SITE}/sitecustomize.py"), f"venv/{SITE}/sitecustomize.py: no wheel brought it"),
        (plant(f"{SITE}/__pycache__/six.pyc"), f"venv/{SITE}/__pycache__/six.pyc: no wheel brought it"),
        (plant(f"{SITE}/evil-1.dist-info/RECORD"), f"venv/{SITE}/evil-1.dist-info/RECORD: no wheel brought it"),
        (plant("bin/activate"), "venv/bin/activate: no wheel brought it"),
        (plant("bin/pip"), "venv/bin/pip: no wheel brought it"),
        (lambda venv: (venv / SITE / "six.py").unlink(), f"venv/{SITE}/six.py: missing"),
        (lambda venv: (venv / "bin/runtime").unlink(), "venv/bin/runtime: missing"),
        (lambda venv: (venv / "pyvenv.cfg").unlink(), "venv/pyvenv.cfg: missing"),
        (lambda venv: (venv / "bin/python3").unlink(), "venv/bin/python3: missing"),
        (append("bin/runtime", b"#\n"), "venv/bin/runtime: content changed"),
        (relink(f"{SITE}/six.py", "/dev/null"), f"venv/{SITE}/six.py: not a regular file"),
        (append("pyvenv.cfg", b"executable = /tmp/python\n"), "venv/pyvenv.cfg: unknown key 'executable'"),
    ],
)
def test_a_change_is_found(release: Release, first: ClosedBundle, change: CHANGE, problem: str) -> None:
    assert problems_after(release, change, first) == [problem]


def test_a_replaced_interpreter_is_found(release: Release, first: ClosedBundle) -> None:
    real = release.receipt().python
    assert problems_after(release, relink("bin/python", "/bin/sh"), first) == [
        f"venv/bin/python: a link to /bin/sh, expected {real}"
    ]


def test_an_interpreter_that_is_no_link_is_found(release: Release, first: ClosedBundle) -> None:
    def change(venv: Path) -> None:
        (venv / "bin/python").unlink()
        (venv / "bin/python").write_bytes(b"#!/bin/sh\n")

    assert problems_after(release, change, first) == ["venv/bin/python: not a link"]


def test_a_folder_replaced_by_a_link_is_found(release: Release, first: ClosedBundle, tmp_path: Path) -> None:
    def change(venv: Path) -> None:
        shutil.move(venv / SITE / "runtime", tmp_path / "elsewhere")
        (venv / SITE / "runtime").symlink_to(tmp_path / "elsewhere")

    problems = problems_after(release, change, first)
    assert f"venv/{SITE}/runtime: no wheel brought it" in problems
    assert f"venv/{SITE}/runtime/cli/__init__.py: missing" in problems


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("include-system-site-packages = false", "include-system-site-packages = true", "is true, expected false"),
        ("home = ", "home = /tmp", "home is /tmp/"),
    ],
)
def test_a_changed_configuration_is_found(
    release: Release, first: ClosedBundle, old: str, new: str, words: str
) -> None:
    config = release.venv / "pyvenv.cfg"
    problems = problems_after(release, lambda _: edit(config, config.read_text().replace(old, new).encode()), first)
    assert len(problems) == 1
    assert words in problems[0]


def test_a_fifo_is_found_and_does_not_hang(release: Release, first: ClosedBundle) -> None:
    def change(venv: Path) -> None:
        (venv / SITE / "six.py").unlink()
        os.mkfifo(venv / SITE / "six.py")

    assert problems_after(release, change, first) == [f"venv/{SITE}/six.py: not a regular file"]


def make_wheel(members: dict[str, bytes], name: str = "demo", version: str = "1.0") -> bytes:
    """Return a wheel with a RECORD over ``members``, ``DIST`` in their paths being ``NAME-VERSION``."""
    files = {path.replace("DIST", f"{name}-{version}"): data for path, data in members.items()}
    info = f"{name}-{version}.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in {**files, f"{info}/RECORD": "".join([*lines, f"{info}/RECORD,,\n"]).encode()}.items():
            archive.writestr(path, data)
    return buffer.getvalue()


ENTRY_POINTS = b"""[console_scripts]
plain = demo:main
Dotted-Name = demo.inner : Tool.run
extra = demo:main [color]
[gui_scripts]
window = demo:main
[other.group]
ignored = demo:main
"""


def test_every_way_into_a_venv_works_and_is_checked(tmp_path: Path, closed_key: Key, host: Host) -> None:
    members = {
        "demo/__init__.py": b"import sys\ndef main(): print('main', sys.argv[1:])\n",
        "demo/inner.py": b"class Tool:\n    @staticmethod\n    def run(): print('inner')\n",
        "DIST.dist-info/entry_points.txt": ENTRY_POINTS,
        "DIST.data/scripts/activate-demo": b"#!python\nprint('scripted')\n",
        "DIST.data/scripts/shell-demo": b"#!/bin/sh\necho shell\n",
        "DIST.data/data/share/demo.txt": b"data\n",
        "DIST.data/headers/demo.h": b"int x;\n",
        "DIST.data/purelib/pure.py": b"x = 1\n",
    }
    extra = {"wheels/demo-1.0-py3-none-any.whl": make_wheel(members)}
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, extra=extra)
    prefix = tmp_path / "prefix"
    done = host.runtime(bundle.pyz, "install", bundle.tar, "--prefix", prefix, "--trust", bundle.trust)
    assert done.returncode == 0, done.stderr
    release = Release(path=(prefix / "current").resolve())
    assert check_venv(release, bundle.manifest) == []
    answers = {
        "plain": "main ['1']\n",
        "Dotted-Name": "inner\n",
        "extra": "main ['1']\n",
        "window": "main ['1']\n",
        "activate-demo": "scripted\n",
        "shell-demo": "shell\n",
    }
    assert {name: host.run(prefix / "current/venv/bin" / name, "1").stdout for name in answers} == answers
    before = {name: (release.venv / "bin" / name).read_bytes() for name in answers}
    write_scripts(release, bundle.manifest)
    assert {name: (release.venv / "bin" / name).read_bytes() for name in answers} == before
    assert (release.venv / "share/demo.txt").read_bytes() == b"data\n"


def test_expected_files_of_a_real_wheel(tmp_path: Path) -> None:
    name, data = wheel_named("six")
    (tmp_path / name).write_bytes(data)
    found = {item.path: item.sha256 for item in expected_files(tmp_path / name, SITE)}
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert found[f"{SITE}/six.py"] == hashlib.sha256(archive.read("six.py")).digest()
    assert found[f"{SITE}/six-1.17.0.dist-info/RECORD"] is None
    assert len(found) == 6


@pytest.mark.parametrize("data", [b"not a zip", b""])
def test_an_unreadable_wheel_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"a-1-py3-none-any\.whl: not a readable wheel: File is not a zip file"):
        list(expected_files(tmp_path / "a-1-py3-none-any.whl", SITE))
