"""Resolution for a target, from folders of tiny wheels and from the real index."""

import hashlib
import re
from pathlib import Path

import pytest

from bundler.packages.pipconfig import PipConfig, load_pip_config
from bundler.packages.resolver import UvResolver
from manifests.errors import SourceError
from manifests.manifest import Target
from tests.factories_wheels import make_wheel

LINUX = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
WINDOWS = Target(platform="x86_64-pc-windows-msvc", python="3.11", accelerator="cpu")


def local(folder: Path) -> UvResolver:
    return UvResolver(config=PipConfig(no_index=True, find_links=(str(folder),)))


def refusal(resolver: UvResolver, *requirements: str, target: Target = LINUX) -> SourceError:
    with pytest.raises(SourceError) as caught:
        resolver.resolve(requirements, target, {})
    return caught.value


def test_closure_follows_the_targets_markers_and_tags(tmp_path: Path) -> None:
    make_wheel(tmp_path, "app", "1.0", requires=["lib>=1", 'winlib; sys_platform == "win32"'])
    other = make_wheel(tmp_path, "lib", "1.0")
    make_wheel(tmp_path, "lib", "1.0", tag="cp311-cp311-win_amd64")
    best = make_wheel(tmp_path, "lib", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    make_wheel(tmp_path, "winlib", "2.0")
    linux = local(tmp_path).resolve(["app"], LINUX, {})
    assert [(pin.name, pin.version) for pin in linux.pins] == [("app", "1.0"), ("lib", "1.0")]
    assert linux.pins[1].filename == best.name
    assert linux.pins[1].sha256 == hashlib.sha256(best.read_bytes()).hexdigest()
    assert linux.pins[1].is_local
    assert linux.pins[0].alternatives == {}
    assert linux.pins[1].alternatives == {other.name: hashlib.sha256(other.read_bytes()).hexdigest()}
    assert linux.resolver.startswith("uv ")
    windows = local(tmp_path).resolve(["app"], WINDOWS, {})
    assert [pin.filename for pin in windows.pins] == [
        "app-1.0-py3-none-any.whl",
        "lib-1.0-cp311-cp311-win_amd64.whl",
        "winlib-2.0-py3-none-any.whl",
    ]


def test_kept_versions_stay_while_they_satisfy(tmp_path: Path) -> None:
    make_wheel(tmp_path, "lib", "1.0")
    make_wheel(tmp_path, "lib", "2.0")
    assert local(tmp_path).resolve(["lib"], LINUX, {}).pins[0].version == "2.0"
    assert local(tmp_path).resolve(["lib"], LINUX, {"lib": "1.0"}).pins[0].version == "1.0"
    assert local(tmp_path).resolve(["lib>1"], LINUX, {"lib": "1.0"}).pins[0].version == "2.0"


def test_cpu_wheel_of_the_users_is_chosen(tmp_path: Path) -> None:
    make_wheel(tmp_path, "torch", "2.13.0", requires=["nvidia-cublas"], tag="cp311-cp311-manylinux_2_28_x86_64")
    make_wheel(tmp_path, "torch", "2.14.0+cpu", tag="cp312-cp312-manylinux_2_28_x86_64")
    make_wheel(tmp_path, "torch", "2.12.0+cpu", tag="cp311-cp311-manylinux_2_28_x86_64")
    make_wheel(tmp_path, "nvidia-cublas", "12.0")
    make_wheel(tmp_path, "app", "1.0", requires=["torch>=2"])
    for requirement in ("torch", "torch<=2.13", "app"):
        pins = local(tmp_path).resolve([requirement], LINUX, {}).pins
        assert {pin.name: pin.version for pin in pins}["torch"] == "2.12.0+cpu"
        assert "nvidia-cublas" not in {pin.name for pin in pins}


def test_cuda_closure_is_refused_by_name(tmp_path: Path) -> None:
    make_wheel(tmp_path, "app", "1.0", requires=["nvidia-cublas", "triton", "cuda-bindings"])
    for name in ("nvidia-cublas", "triton", "cuda-bindings"):
        make_wheel(tmp_path, name, "1.0")
    error = refusal(local(tmp_path), "app")
    assert error.exit_code == 3
    listed = error.message.partition(" lead to CUDA packages: ")[2]
    sized = r"cuda-bindings 1\.0 \(.* B\), nvidia-cublas 1\.0 \(.* B\), triton 1\.0 \(.* B\); 3 wheels, .* kB"
    assert re.fullmatch(sized.replace(" B", " k?B"), listed)


def test_plain_torch_never_becomes_a_cuda_closure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    make_wheel(tmp_path, "torch", "2.13.0", requires=["nvidia-cublas"], tag="cp311-cp311-manylinux_2_28_x86_64")
    make_wheel(tmp_path, "nvidia-cublas", "12.0")
    error = refusal(local(tmp_path), "torch")
    assert "torch" in error.message or "nvidia-cublas" in error.message


def test_unknown_requirement_is_named(tmp_path: Path) -> None:
    make_wheel(tmp_path, "lib", "1.0")
    error = refusal(local(tmp_path), "lib", "no-such-thing")
    assert error.message == "requirement 'no-such-thing': no index has a package of that name"


def test_no_wheel_for_the_target_says_what_exists(tmp_path: Path) -> None:
    make_wheel(tmp_path, "lib", "1.0", tag="cp311-cp311-win_amd64")
    error = refusal(local(tmp_path), "lib==1.0")
    assert error.message.startswith("no wheel for x86_64-manylinux_2_28-cp311-cpu: Because lib==1.0 has no wheels")
    assert "win_amd64" in (error.hint or "")


def test_unreachable_index_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    config = PipConfig(index_url="http://me:secret@127.0.0.1:9/simple")
    error = refusal(UvResolver(config=config), "six")
    assert error.message.startswith("an index can't be reached: http://")
    assert "127.0.0.1:9/simple/six/" in error.message
    assert "secret" not in error.render()


def test_real_index() -> None:
    resolution = UvResolver(config=load_pip_config()).resolve(["six==1.17.0"], WINDOWS, {})
    assert [(pin.name, pin.version, pin.filename) for pin in resolution.pins] == [
        ("six", "1.17.0", "six-1.17.0-py2.py3-none-any.whl")
    ]
    assert resolution.pins[0].sha256 == "4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274"
