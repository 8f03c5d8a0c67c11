"""The reference work: the RAG stack and a model of BGE-M3's shape, as a spec, a lock, bundles, and a guide's folder."""

import json
import os
import platform
import random
import shutil
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Bench

RAG_STACK: Final = (
    *("torch==2.13.0", "transformers<5.24", "sentence-transformers", "FlagEmbedding", "numpy", "scipy"),
    *("scikit-learn", "huggingface_hub", "tokenizers", "accelerate", "safetensors"),
)
IDENTITY: Final = "bench@example.com"
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"

_VOCABULARY: Final = 250_002
_POSITIONS: Final = 8_194
_LAYERS: Final = 24
_WIDTH: Final = 1_024
_BLOCK: Final = 1 << 22  # far wider than gzip's window, so that repeating it does not make it compressible


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much work: the requirements, whether there is a model, and the sizes in bytes of the sparse model and app."""

    requirements: tuple[str, ...]
    model: bool
    sparse: int
    needs: int
    """Free bytes that the work folder must have."""


FULL: Final = Size(requirements=RAG_STACK, model=True, sparse=40_000_000_000, needs=26_000_000_000)
SMALL: Final = Size(requirements=("six==1.17.0",), model=False, sparse=200_000_000, needs=500_000_000)


class Workload:
    """Everything below one folder, each part made when it is first asked for.

    Args:
        bench: Runs what has to be run; its folder is the workload's.
        size: How much.
    """

    def __init__(self, bench: Bench, size: Size) -> None:
        self._bench = bench
        self.size = size
        self.folder = bench.folder

    @property
    def spec(self) -> Path:
        """The spec of version 1.0.0."""
        return self._lock("1.0.0")

    @cached_property
    def key(self) -> Path:
        """A throw-away signing key."""
        path = self.folder / "key"
        self._bench.run([*self.bundler, "keygen", path, "--identity", IDENTITY])
        return path

    @property
    def bundler(self) -> tuple[str, ...]:
        """The command line of the builder's side."""
        return (sys.executable, "-m", "bundler.cli")

    @property
    def trust(self) -> Path:
        """The trust file that lists :attr:`key`."""
        return Path(f"{self.key}.allowed_signers")

    @cached_property
    def runtime(self) -> tuple[str, ...]:
        """The command line of the closed side: the kit's ``runtime.pyz`` on the same Python."""
        kit = next(self.bundle.parent.glob("*.kit"))
        return (sys.executable, "-I", "-S", str(kit / "runtime.pyz"))

    @cached_property
    def bundle(self) -> Path:
        """The bundle of version 1.0.0."""
        return self._build("1.0.0")

    @cached_property
    def next_bundle(self) -> Path:
        """The bundle of version 1.0.1, with the same wheels and models."""
        return self._build("1.0.1")

    @cached_property
    def pins(self) -> Path:
        """A requirements file with the pins of the lock, for pip."""
        path = self.folder / "pins.txt"
        path.write_text("".join(f"{_pin(wheel)}\n" for wheel in self._wheels()), encoding="utf-8")
        return path

    @cached_property
    def guide(self) -> Path:
        """A folder as a guide's script makes it: ``models`` (hard links, so free of charge) and an empty ``wheels``."""
        folder = self.folder / "guide"
        (folder / "wheels").mkdir(parents=True)
        shutil.copytree(self._payload, folder / "models" / self._payload.name, copy_function=os.link)
        return folder

    @cached_property
    def plain(self) -> Path:
        """A folder with the payload as plain files: ``models`` and ``wheels``, hard links of what the store holds."""
        folder = self.folder / "plain"
        (folder / "wheels").mkdir(parents=True)
        shutil.copytree(self._payload, folder / "models" / self._payload.name, copy_function=os.link)
        for wheel in self._wheels():
            blob = self.folder / "cache" / "sealift" / "sha256" / wheel["sha256"][:2] / wheel["sha256"]
            (folder / wheel["path"]).hardlink_to(blob)
        return folder

    @cached_property
    def archive(self) -> Path:
        """The guide's ``payload.tar.gz``; whoever measured the guide's build has made it already."""
        path = self.folder / "payload.tar.gz"
        if not path.exists():
            self._bench.report("tar czf, for the install peers")
            self._bench.run(["tar", "czf", path, "-C", self.plain, "."])
        return path

    @cached_property
    def _payload(self) -> Path:
        folder = self.folder / "payload"
        folder.mkdir()
        (folder / "config.json").write_text('{"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}\n')
        if self.size.model:
            self._bench.report("write a model of 2.27 GB")
            write_model(folder / "model.safetensors")
        else:
            (folder / "weights.bin").write_bytes(random.Random(0).randbytes(2_000_000))  # noqa: S311 # no secret
        return folder

    def _lock(self, version: str) -> Path:
        path = self.folder / f"bench-{version}.toml"
        if not path.exists():
            path.write_text(self._spec_text(version), encoding="utf-8")
            self._bench.report(f"lock {version}")
            self._bench.run([*self.bundler, "lock", path])
            # uv unpacks wheels there to read their metadata.
            shutil.rmtree(self.folder / "cache" / "uv", ignore_errors=True)
        return path

    def _spec_text(self, version: str) -> str:
        carried = f'[[app]]\nname = "payload"\nsource = "dir:{self._payload}"\n'
        if self.size.model:
            carried = f'[[model]]\nname = "shape"\nadapter = "bge-m3"\nsource = "dir:{self._payload}"\n'
        return (
            f'[bundle]\nname = "bench"\nversion = "{version}"\n'
            f'[target]\nplatform = "{platform.machine()}-manylinux_2_28"\npython = "{PYTHON}"\naccelerator = "cpu"\n'
            f"[packages]\nrequirements = {json.dumps(self.size.requirements)}\n{carried}"
        )

    def _build(self, version: str) -> Path:
        output = self.folder / f"out-{version}"
        self._bench.report(f"build {version}")
        self._bench.run(self.build_command(self._lock(version), output))
        return next(output.glob("*.bundle.tar"))

    def build_command(self, spec: Path, output: Path) -> tuple[str | Path, ...]:
        """Return the command that builds ``spec`` into ``output``, signed, without a rehearsal."""
        return (*self.bundler, "build", spec, "--output", output, "--key", self.key, "--no-rehearsal")

    def _wheels(self) -> list[Mapping[str, Any]]:  # Any: our own lock, read as plain JSON
        wheels: list[Mapping[str, Any]] = json.loads(self.spec.with_suffix(".lock").read_bytes())["wheels"]
        return wheels


def _pin(wheel: Mapping[str, Any]) -> str:  # Any: see Workload._wheels
    name, version = wheel["path"].rpartition("/")[2].split("-")[:2]
    kind, _, source = wheel["source"].partition(" ")
    # A local version from an index may lie in one that only uv was told of, such as PyTorch's.
    return f"{name} @ {source}" if "+" in version and kind == "index" else f"{name}=={version}"


def model_shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of BGE-M3's encoder (XLM-RoBERTa large): name -> shape."""
    wide = 4 * _WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (_VOCABULARY, _WIDTH),
        "embeddings.position_embeddings.weight": (_POSITIONS, _WIDTH),
        "embeddings.token_type_embeddings.weight": (1, _WIDTH),
        "pooler.dense.weight": (_WIDTH, _WIDTH),
        "pooler.dense.bias": (_WIDTH,),
    }
    linear = {"attention.self.query": (_WIDTH, _WIDTH), "attention.self.key": (_WIDTH, _WIDTH)}
    linear |= {"attention.self.value": (_WIDTH, _WIDTH), "attention.output.dense": (_WIDTH, _WIDTH)}
    linear |= {"intermediate.dense": (wide, _WIDTH), "output.dense": (_WIDTH, wide)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(_LAYERS):
        prefix = f"encoder.layer.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{prefix}.{name}.bias": shape[:1] for name, shape in linear.items()}
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    return shapes | {f"{norm}.{part}": (_WIDTH,) for norm in norms for part in ("weight", "bias")}


def write_model(path: Path) -> None:
    """Write a safetensors file of BGE-M3's shape, float32, 2.27 GB, whose weights are normally distributed."""
    header: dict[str, object] = {}
    end = 0
    for name, (rows, *columns) in model_shapes().items():
        start, end = end, end + 4 * rows * (columns[0] if columns else 1)
        header[name] = {"dtype": "F32", "shape": [rows, *columns], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    chance = random.Random(0)  # noqa: S311 # weights, not secrets
    block = array("f", (chance.gauss(0, 0.02) for _ in range(_BLOCK // 4))).tobytes() * 2
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        left = end
        while left:
            start = chance.randrange(0, _BLOCK, 4)  # so that no two chunks are the same
            left -= stream.write(memoryview(block)[start : start + min(_BLOCK, left)])
