"""The accelerator: which torch a target gets, on a loopback index of torch-shaped stand-ins, and what is refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundler.packages.accelerator import ClosurePackage, check_budget, check_closure
from bundler.packages.fetch import fetch_pins
from bundler.packages.pipconfig import PipConfig
from bundler.packages.resolver import Pin, UvResolver
from bundler.spec import IndexSpec
from bundler.store import Store
from manifests.errors import PolicyError, SourceError
from manifests.manifest import Target
from tests.factories_index import NVIDIA, SimpleIndex, by_project, make_torch_stand_ins, simple_index
from tests.factories_wheels import make_wheel

LINUX, ARM = "x86_64-manylinux_2_28", "aarch64-manylinux_2_28"
MAC, WINDOWS = "aarch64-apple-darwin", "x86_64-pc-windows-msvc"
MATRIX = [
    (LINUX, "cpu", "cpu", "2.13.0+cpu", "manylinux_2_28_x86_64", None),
    (LINUX, "cuda-12.6", "cu126", "2.13.0+cu126", "manylinux_2_28_x86_64", "12"),
    (LINUX, "cuda-13.0", "cu130", "2.13.0+cu130", "manylinux_2_28_x86_64", "13"),
    (LINUX, "cuda-13.0", "public", "2.13.0", "manylinux_2_28_x86_64", "13"),
    (ARM, "cpu", "cpu", "2.13.0+cpu", "manylinux_2_28_aarch64", None),
    (ARM, "cuda-13.0", "public", "2.13.0", "manylinux_2_28_aarch64", "13"),
    (MAC, "cpu", "cpu", "2.13.0", "macosx_14_0_arm64", None),
    (MAC, "mps", "public", "2.13.0", "macosx_14_0_arm64", None),
    (WINDOWS, "cpu", "public", "2.13.0", "win_amd64", None),
    (WINDOWS, "cpu", "cpu", "2.13.0+cpu", "win_amd64", None),
    (WINDOWS, "cuda-12.6", "cu126", "2.13.0+cu126", "win_amd64", None),
]
"""Platform, accelerator, the index that torch is bound to, and what comes: version, tag, and the CUDA of libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexes:
    """The running indexes by name."""

    public: SimpleIndex
    cpu: SimpleIndex
    cu126: SimpleIndex
    cu130: SimpleIndex

    def resolver(self, torch_index: str) -> UvResolver:
        """Return a resolver that takes torch from an index, and everything else from the public one."""
        bound = IndexSpec(url=getattr(self, torch_index).url, packages=("torch",))
        return UvResolver(config=PipConfig(index_url=self.public.url), indexes=(bound,))


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexes]:
    folder = make_torch_stand_ins(tmp_path_factory.mktemp("stand-ins"))
    make_wheel(folder / "public", "app", "1.0", requires=["torch>=2"])
    make_wheel(folder / "public", "plain", "1.0")
    with (
        simple_index(by_project(folder / "public")) as public,
        simple_index(by_project(folder / "cpu")) as cpu,
        simple_index(by_project(folder / "cu126")) as cu126,
        simple_index(by_project(folder / "cu130")) as cu130,
    ):
        yield Indexes(public=public, cpu=cpu, cu126=cu126, cu130=cu130)


def target(platform: str, accelerator: str, python: str = "3.11") -> Target:
    return Target(platform=platform, python=python, accelerator=accelerator)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("row", MATRIX, ids=lambda row: "-".join(row[:3]))
def test_torch_shaped_stand_ins_for_every_target(
    indexes: Indexes, row: tuple[str, str, str, str, str, str | None], python: str
) -> None:
    platform, accelerator, index, version, tag, cuda = row
    pins = indexes.resolver(index).resolve(["torch"], target(platform, accelerator, python), {}).pins
    found = {pin.name: pin for pin in pins}
    torch, short = found["torch"], python.replace(".", "")
    assert (torch.version, torch.filename) == (version, f"torch-{version}-cp{short}-cp{short}-{tag}.whl")
    assert torch.url.startswith(getattr(indexes, index).url.removesuffix("simple"))
    assert torch.index == getattr(indexes, index).url
    assert torch.size > 0
    expected = {"torch", "tinylib"} | ({"winlib"} if platform == WINDOWS else set())
    expected |= {f"nvidia-{name}-cu{cuda}" for name in NVIDIA} | {"triton"} if cuda else set()
    assert found.keys() == expected


def refusal(indexes: Indexes, index: str, platform: str, accelerator: str) -> str:
    with pytest.raises(SourceError) as caught:
        indexes.resolver(index).resolve(["torch"], target(platform, accelerator), {})
    return caught.value.message


@pytest.mark.parametrize("platform", [LINUX, ARM])
def test_cuda_libraries_in_a_cpu_closure_are_named_with_their_bytes(indexes: Indexes, platform: str) -> None:
    message = refusal(indexes, "public", platform, "cpu")
    assert message.startswith(
        "target.accelerator is cpu, but the requirements lead to CUDA packages: nvidia-cublas-cu13 "
    )
    for name in NVIDIA:
        assert f"nvidia-{name}-cu13 13.1 (1." in message
    assert "triton 3.6.0 (" in message
    assert f"; {len(NVIDIA) + 1} wheels, 7." in message


def test_cuda_build_without_libraries_is_refused_on_a_cpu_target(indexes: Indexes) -> None:
    message = refusal(indexes, "cu126", WINDOWS, "cpu")
    assert message == "target.accelerator is cpu, but torch 2.13.0+cu126 is a build for CUDA"


def test_another_cuda_is_refused(indexes: Indexes) -> None:
    message = refusal(indexes, "public", LINUX, "cuda-12.6")
    assert message.startswith(
        "target.accelerator is cuda-12.6, but these packages are for another CUDA: nvidia-cublas-cu13 13.1 ("
    )
    for index, platform, accelerator, version in (
        ("cpu", LINUX, "cuda-12.6", "2.13.0+cpu"),
        ("public", WINDOWS, "cuda-12.6", "2.13.0"),
        ("cu126", WINDOWS, "cuda-13.0", "2.13.0+cu126"),
    ):
        wanted = accelerator.removeprefix("cuda-")
        assert refusal(indexes, index, platform, accelerator) == (
            f"target.accelerator is {accelerator}, but torch {version} is not a build for CUDA {wanted}"
        )


def test_numbered_cuda_packages_count_by_their_version() -> None:
    packages = [
        ClosurePackage(name="cuda-bindings", version="13.0.2"),
        ClosurePackage(name="nvidia-cufft", version="12.0"),
    ]
    check_closure(packages, target(LINUX, "cuda-13.0"))
    with pytest.raises(SourceError, match=r"for another CUDA: cuda-bindings 13\.0\.2 \(size unknown\); 1 wheels"):
        check_closure(packages, target(LINUX, "cuda-12.8"))


def test_binding_holds_for_what_others_ask_for(indexes: Indexes) -> None:
    asked = len(indexes.public.requests)
    pins = indexes.resolver("cpu").resolve(["app"], target(LINUX, "cpu"), {}).pins
    assert {pin.name: pin.version for pin in pins} == {"app": "1.0", "tinylib": "1.0", "torch": "2.13.0+cpu"}
    assert not any("/torch/" in line for line in indexes.public.requests[asked:])


def test_what_is_bound_but_not_needed_stays_out(indexes: Indexes) -> None:
    assert [pin.name for pin in indexes.resolver("cpu").resolve(["plain"], target(LINUX, "cpu"), {}).pins] == ["plain"]
    # cu126 has nothing for aarch64; that doesn't matter as long as nobody needs it.
    arm = target(ARM, "cpu")
    assert [pin.name for pin in indexes.resolver("cu126").resolve(["plain"], arm, {}).pins] == ["plain"]
    with pytest.raises(SourceError, match="torch"):
        indexes.resolver("cu126").resolve(["app"], arm, {})


def test_bound_packages_never_come_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same name and a higher version on the public index is not even asked for."""
    mine = make_wheel(tmp_path / "private", "corp-lib", "1.0")
    make_wheel(tmp_path / "public", "corp-lib", "9.0")
    make_wheel(tmp_path / "public", "app", "1.0", requires=["corp-lib"])
    with (
        simple_index(by_project(tmp_path / "public")) as public,
        simple_index(by_project(tmp_path / "private"), auth=("me", "s3cret/word")) as private,
    ):
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password s3cret/word\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", public.url)
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        bound = (IndexSpec(url=private.url, packages=("corp-lib",)),)
        resolver = UvResolver(config=PipConfig(index_url=public.url), indexes=bound)
        pins = resolver.resolve(["app"], target(LINUX, "cpu"), {}).pins
        files = fetch_pins(pins, Store(tmp_path / "cache"), target(LINUX, "cpu"))
        assert [file.path for file in files] == ["wheels/app-1.0-py3-none-any.whl", f"wheels/{mine.name}"]
        assert files[1].source == f"index {private.url.removesuffix('simple')}files/{mine.name}"
        assert private.downloads == {mine.name}
        assert not any("corp-lib" in line for line in public.requests)


def test_login_of_pips_own_configuration_serves_a_bound_index(tmp_path: Path) -> None:
    make_wheel(tmp_path / "private", "corp-lib", "1.0")
    with simple_index(by_project(tmp_path / "private"), auth=("me", "p@ss word")) as private:
        bound = (IndexSpec(url=private.url, packages=("corp-lib",)),)
        config = PipConfig(index_url="http://127.0.0.1:9/simple", extra_index_urls=(private.url_with_login,))
        assert config.login_variables(private.url, "bound-0") == {
            "UV_INDEX_BOUND_0_USERNAME": "me",
            "UV_INDEX_BOUND_0_PASSWORD": "p@ss word",
        }
        assert config.login_variables("http://127.0.0.1:9/simple", "bound-0") == {}
        pins = UvResolver(config=config, indexes=bound).resolve(["corp-lib"], target(LINUX, "cpu"), {}).pins
        assert [pin.index for pin in pins] == [private.url]
        assert not any("p@ss" in value or "p%40ss" in value for pin in pins for value in (pin.url, pin.index))


def test_local_versions_are_locked_with_digest_and_origin(indexes: Indexes, tmp_path: Path) -> None:
    pins = indexes.resolver("cpu").resolve(["torch"], target(LINUX, "cpu"), {}).pins
    torch = next(pin for pin in pins if pin.name == "torch")
    (locked,) = fetch_pins([torch], Store(tmp_path), target(LINUX, "cpu"))
    assert locked.origin == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert locked.source == f"index {indexes.cpu.url.removesuffix('simple')}files/{torch.filename.replace('+', '%2B')}"
    assert (locked.sha256, locked.size) == (torch.sha256, torch.size)


def test_budget_is_checked_on_what_indexes_say() -> None:
    packages = [
        ClosurePackage(name="big", version="1", size=3_000_000_000),
        ClosurePackage(name="small", version="1", size=2_000),
        ClosurePackage(name="vague", version="1"),
    ]
    assert check_budget(packages, None) == "3 wheels, 3.0 GB, and of unknown size: vague"
    assert check_budget(packages[1:2], 2_000) == "1 wheels, 2.0 kB"
    with pytest.raises(PolicyError) as caught:
        check_budget(packages, 2_000_000_000)
    assert caught.value.message == (
        "the wheels have 3.0 GB, policy.max-size allows 2.0 GB; "
        "largest: big 3.0 GB, small 2.0 kB, vague 0 B; nothing was fetched"
    )


def test_pins_of_an_index_without_sizes_are_unknown(tmp_path: Path) -> None:
    make_wheel(tmp_path, "lib", "1.0")
    with simple_index(by_project(tmp_path), sizes=False) as index:
        resolver = UvResolver(config=PipConfig(index_url=index.url))
        found: tuple[Pin, ...] = resolver.resolve(["lib"], target(LINUX, "cpu"), {}).pins
    assert [pin.size for pin in found] == [0]
