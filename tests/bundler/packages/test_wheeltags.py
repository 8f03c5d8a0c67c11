"""Wheel tags of targets that this host is not."""

import pytest

from bundler.packages.wheeltags import best_wheel, tag_rank, wheel_platforms
from manifests.manifest import Target

LINUX = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
ARM = Target(platform="aarch64-manylinux_2_28", python="3.12", accelerator="cpu")
MAC = Target(platform="aarch64-apple-darwin", python="3.11", accelerator="mps")
WINDOWS = Target(platform="x86_64-pc-windows-msvc", python="3.11", accelerator="cpu")


@pytest.mark.parametrize(
    ("target", "tag", "fits"),
    [
        (LINUX, "cp311-cp311-manylinux_2_28_x86_64", True),
        (LINUX, "cp311-cp311-manylinux1_x86_64", True),
        (LINUX, "cp38-abi3-manylinux2014_x86_64", True),
        (LINUX, "cp311-cp311-manylinux_2_29_x86_64", False),
        (LINUX, "cp312-cp312-manylinux_2_28_x86_64", False),
        (LINUX, "cp312-abi3-manylinux_2_28_x86_64", False),
        (LINUX, "cp311-cp311-musllinux_1_2_x86_64", False),
        (LINUX, "cp311-cp311t-manylinux_2_28_x86_64", False),
        (ARM, "cp312-cp312-manylinux_2_17_aarch64", True),
        (ARM, "cp312-cp312-manylinux_2_12_aarch64", False),
        (MAC, "cp311-cp311-macosx_14_0_arm64", True),
        (MAC, "cp311-cp311-macosx_10_9_universal2", True),
        (MAC, "cp311-cp311-macosx_15_0_arm64", False),
        (WINDOWS, "cp311-cp311-win_amd64", True),
        (WINDOWS, "py2.py3-none-any", True),
        (WINDOWS, "cp311-cp311-win32", False),
    ],
)
def test_fit(target: Target, tag: str, *, fits: bool) -> None:
    assert (tag_rank(f"a-1-{tag}.whl", target) is not None) is fits


def test_best_wheel_is_the_most_specific_and_the_highest_build() -> None:
    names = [
        "a-1-py3-none-any.whl",
        "a-1-cp311-cp311-manylinux_2_17_x86_64.whl",
        "a-1-cp38-abi3-manylinux_2_28_x86_64.whl",
    ]
    assert best_wheel(names, LINUX) == names[1]
    assert (
        best_wheel([*names, "a-1-7-cp311-cp311-manylinux_2_17_x86_64.whl"], LINUX)
        == "a-1-7-cp311-cp311-manylinux_2_17_x86_64.whl"
    )
    assert best_wheel(["a-1-cp311-cp311-win32.whl", "nonsense.whl"], LINUX) is None


def test_linux_platforms_begin_with_the_newest() -> None:
    platforms = wheel_platforms(LINUX)
    assert platforms[0] == "manylinux_2_28_x86_64"
    assert platforms[-3:] == ("manylinux_2_5_x86_64", "manylinux1_x86_64", "linux_x86_64")
