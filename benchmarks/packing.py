"""Against the nearest tool of its kind on PyPI, airgap-bundle, on a stack that it can pack."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from uv import find_uv_bin

from benchmarks.measure import Command, Side
from benchmarks.sections import Section, Sections, ratio_row, remove_folder
from benchmarks.table import Row
from benchmarks.workload import PYTHON

_PEER: Final = ("airgap-bundle==0.1.1", "pip==26.0.1")
# Its list of tags ends at manylinux_2_17, so PyTorch and what else needs newer ones can't be packed by it.
_STACK: Final = ("six==1.17.0", "click==8.3.1", "idna", "jinja2", "numpy==1.26.4")


def pack_small(sections: Sections) -> Iterator[Row]:
    """Five small packages, nothing fetched yet: resolve, fetch, pack; both signatures left out."""
    work, uv = sections.work, find_uv_bin()
    folder = work.folder / "packing"
    project, venv, fresh = folder / "project", folder / "venv", folder / "fresh"
    project.mkdir(parents=True)
    _write_inputs(project)
    sections.bench.run((uv, "venv", "--quiet", "--python", sys.executable, venv))
    sections.bench.run((uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", *_PEER))
    sections.bench.run((uv, "lock", "--quiet", "--project", project))

    def prepare() -> None:
        remove_folder(fresh)
        fresh.mkdir()

    cache: Command = ("env", f"XDG_CACHE_HOME={fresh / 'cache'}", f"PIP_CACHE_DIR={fresh / 'pip'}")
    spec = project / "demo.toml"
    ours = Side(
        label="pack-small",
        commands=(
            (*cache, *work.bundler, "lock", spec),
            (*cache, *work.bundler, "build", spec, "--output", fresh / "out", "--unsigned", "--no-rehearsal"),
            ("sync",),
        ),
        prepare=prepare,
    )
    packer = venv / "bin" / "airgap-bundle"
    peer = Side(
        label="pack-small: uv lock + airgap-bundle build",
        commands=(
            (*cache, uv, "lock", "--quiet", "--upgrade", "--project", project),
            (*cache, packer, "build", project, "--out", fresh / "peer.tar.zst"),
            ("sync",),
        ),
        prepare=prepare,
    )
    found = sections.compare("pack-small", [ours, peer])
    remove_folder(folder)
    yield ratio_row("pack-small", found, ours=ours, peer=peer, goal=1.0)


def _write_inputs(project: Path) -> None:
    listed = ", ".join(f'"{item}"' for item in _STACK)
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "demo"\nversion = "1.0.0"\nrequires-python = ">={PYTHON}"\ndependencies = [{listed}]\n',
        encoding="utf-8",
    )
    (project / "airgap.toml").write_text(
        f'[bundle]\nname = "demo"\nversion = "1.0.0"\n[platform]\ntargets = ["linux/amd64"]\npython = "{PYTHON}"\n'
        '[python]\npyproject = true\n[source]\ninclude = ["**/*.py"]\n'
        '[install]\nprefix = "/opt/demo"\nentrypoints = []\n',
        encoding="utf-8",
    )
    (project / "a.py").write_text("print(1)\n", encoding="utf-8")
    (project / "demo.toml").write_text(
        '[bundle]\nname = "demo"\nversion = "1.0.0"\n[target]\naccelerator = "cpu"\n'
        f"[packages]\nrequirements = [{listed}]\n",
        encoding="utf-8",
    )


PACKING: Final[Mapping[str, Section]] = {"pack-small": pack_small}
"""Name -> section."""
