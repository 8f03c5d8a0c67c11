"""What a bundle carries of ourselves: deterministic, valid, and runnable alone."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from bundler.selfpack import WHEEL_NAME, package_files, runtime_pyz, runtime_wheel, self_digests, template_root
from manifests import __version__
from manifests.digests import sha256_hex

CODE = "import sys; from bundler.selfpack import self_digests; print(sorted(self_digests().items()))"


def test_every_process_makes_the_same_bytes(tmp_path: Path) -> None:
    answers = set()
    for seed, zone in (("1", "Asia/Seoul"), ("2", "UTC")):
        path = str(template_root().parent)
        environment = {"PYTHONPATH": path, "PYTHONHASHSEED": seed, "TZ": zone, "PATH": os.defpath}
        words = [sys.executable, "-B", "-c", CODE]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        answers.add(done.stdout)
    assert len(answers) == 1
    assert "runtime.pyz" in answers.pop()


def test_every_member_is_stored_and_dateless() -> None:
    for data in (runtime_pyz(), runtime_wheel()):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            assert archive.testzip() is None
        assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in infos} == {0o100644}
        assert not [info.filename for info in infos if "__pycache__" in info.filename]


def test_the_pyz_holds_the_core_alone_and_runs_isolated(tmp_path: Path) -> None:
    (tmp_path / "runtime.pyz").write_bytes(runtime_pyz())
    with zipfile.ZipFile(tmp_path / "runtime.pyz") as archive:
        names = archive.namelist()
    assert "runtime/cli/__init__.py" in names
    assert {name.split("/")[0] for name in names} == {"__main__.py", "manifests", "runtime"}
    assert not [name for name in names if name.startswith(("runtime/adapters", "runtime/server", "manifests/bundles"))]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "runtime.pyz"), "--version"],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"runtime {__version__}\n"


def test_every_module_of_the_pyz_is_importable_without_site_packages(tmp_path: Path) -> None:
    (tmp_path / "runtime.pyz").write_bytes(runtime_pyz())
    code = (
        "import importlib, sys, zipfile; pyz = sys.argv[1]; sys.path.insert(0, pyz)\n"
        "for name in zipfile.ZipFile(pyz).namelist():\n"
        "    if name.endswith('.py') and not name.endswith('__main__.py'):\n"
        "        importlib.import_module(name[:-3].removesuffix('/__init__').replace('/', '.'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "runtime.pyz")], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_wheel_installs_and_works(tmp_path: Path) -> None:
    (tmp_path / WHEEL_NAME).write_bytes(runtime_wheel())
    words = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, *words, "--target", str(tmp_path / "site"), str(tmp_path / WHEEL_NAME)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert (site / f"sealift-{__version__}.dist-info/entry_points.txt").is_file()
    assert (site / "runtime/server/app.py").is_file()
    assert (site / "sealift.pth").is_file()
    assert not (site / "bundler").exists()


def test_the_record_is_complete() -> None:
    with zipfile.ZipFile(io.BytesIO(runtime_wheel())) as archive:
        record = archive.read(f"sealift-{__version__}.dist-info/RECORD").decode()
        names = archive.namelist()
    rows = [line.rsplit(",", 2) for line in record.splitlines()]
    assert sorted(row[0] for row in rows) == sorted(names)
    assert rows[-1] == [f"sealift-{__version__}.dist-info/RECORD", "", ""]


def test_self_digests_name_what_they_pin() -> None:
    digests = self_digests()
    assert digests["runtime.pyz"] == sha256_hex(runtime_pyz())
    assert digests[WHEEL_NAME] == sha256_hex(runtime_wheel())
    assert set(digests) == {"runtime.pyz", "templates", WHEEL_NAME}


def test_package_files_are_sources_only() -> None:
    files = package_files("manifests")
    assert files["manifests/errors.py"] == (template_root().parent / "manifests/errors.py").read_bytes()
    assert list(files) == sorted(files)
    assert not [name for name in files if name.endswith(".pyc")]
