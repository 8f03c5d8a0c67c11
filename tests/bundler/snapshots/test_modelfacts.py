"""Facts by content: what a name hides, and what only looks dangerous."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Final

import pytest

from bundler.snapshots.modelfacts import ModelFacts, find_facts

ACTING: Final = [pickle.dumps(Path("x"), protocol) for protocol in range(6)]  # each builds an object


def facts_of(folder: Path, files: dict[str, bytes]) -> ModelFacts:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return find_facts({name: folder / name for name in files})


def archive(*names: str, prefix: bytes = b"") -> bytes:
    stream = io.BytesIO()
    stream.write(prefix)
    with zipfile.ZipFile(stream, "a") as target:
        for name in names:
            target.writestr(name, b"x")
    return stream.getvalue()


def safetensors(header: bytes = b'{"w":{}}', body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


PICKLED = {
    **{f"protocol-{number}": data for number, data in enumerate(ACTING)},
    "torch": archive("archive/data.pkl", "archive/data/0"),
    "old-torch": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "long-protocol-0": pickle.dumps([Path(str(number)) for number in range(9000)], 0),
    "gzip": gzip.compress(ACTING[4]),
    "zlib": zlib.compress(ACTING[3]),
    "bz2": bz2.compress(ACTING[2]),
    "xz": lzma.compress(ACTING[4]),
    "behind-safetensors": archive("a/data.pkl", prefix=safetensors()),
    "broken-zip": archive("a")[:-22] + b"PK\x05\x06" + b"\xff" * 18,
    "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n" + ACTING[3],
}
HARMLESS = {
    "safetensors": safetensors(),
    "safetensors-with-640-bytes-of-header": safetensors(b"{" + b" " * 638 + b"}"),  # begins as protocol 2 would
    "zip": archive("a.txt"),
    "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n\0\0\0\0",
    "json": b'{"a": [1]}',
    "words": b"cat\ndog\nsun\n" * 9000,
    "merges": b"#version: 0.2\n\xc4\xa0 t\nh e\n",
    "empty": b"",
    "gzip": gzip.compress(b"text"),
    "not-gzip": b"\x1f\x8b but not really",
    "random-end-of-zip": safetensors(body=b"PK\x05\x06" + b"\xff" * 18),
    "gguf": b"GGUF\x03\x00\x00\x00",
}


@pytest.mark.parametrize("name", PICKLED)
def test_pickles_are_found_under_any_name(tmp_path: Path, name: str) -> None:
    assert facts_of(tmp_path, {"model.safetensors": PICKLED[name]}).pickles == ("model.safetensors",)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_none_is_left_alone(tmp_path: Path, name: str) -> None:
    assert facts_of(tmp_path, {"pytorch_model.bin": HARMLESS[name]}).pickles == ()


def test_names_that_programs_unpickle_count_as_well(tmp_path: Path) -> None:
    names = ["a.pt", "b.pth", "c.ckpt", "d.pkl", "e.pickle", "f.JOBLIB"]
    assert facts_of(tmp_path, dict.fromkeys(names, b"")).pickles == tuple(names)


def test_old_tar_of_torch(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        info = tarfile.TarInfo("pickle")
        info.size = len(ACTING[2])
        target.addfile(info, io.BytesIO(ACTING[2]))
    assert facts_of(tmp_path, {"model.bin": stream.getvalue()}).pickles == ("model.bin",)


def test_code_and_pointers_to_code(tmp_path: Path) -> None:
    config = {"auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": "other/repo--configuration_x.C"}}
    facts = facts_of(
        tmp_path,
        {
            "config.json": json.dumps(config).encode(),
            "tokenizer_config.json": b'{"\\u0061uto_map": {"AutoTokenizer": ["third/repo--t.T", null]}}',
            "sub/mlx.json": b'{"inner": [{"model_file": "evil.py"}]}',
            "kernel.json": b'{"_attn_implementation_internal": "kernels/attention", "_attn_implementation": "sdpa"}',
            "broken.json": b'{"auto_map": ',
            "modeling_x.py": b"",
            "sub/native.so": b"",
            "notes.txt": b'{"auto_map": "x"}',
        },
    )
    assert facts.code == ("modeling_x.py", "sub/native.so")
    assert facts.auto_map == (
        "broken.json: not readable as JSON",
        "config.json: modeling_x.X",
        "config.json: other/repo--configuration_x.C",
        "tokenizer_config.json: third/repo--t.T",
    )
    assert facts.model_file == ("sub/mlx.json: evil.py",)
    assert facts.remote_repos == ("kernels/attention", "other/repo", "third/repo")


def test_deeply_nested_json_is_no_way_out(tmp_path: Path) -> None:
    data = b'{"auto_map": "x", "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert facts_of(tmp_path, {"config.json": data}).auto_map == ("config.json: not readable as JSON",)


def test_chat_template(tmp_path: Path) -> None:
    inside = {"tokenizer_config.json": b'{"chat_template": "{{ x }}"}'}
    assert facts_of(tmp_path, inside).chat_template == "tokenizer_config.json"
    assert facts_of(tmp_path, inside | {"chat_template.jinja": b""}).chat_template == "chat_template.jinja"


@pytest.mark.parametrize(
    ("readme", "declared"),
    [
        (b"---\nlanguage: en\nlicense: apache-2.0\n---\n# Title\n", "apache-2.0"),
        (b"---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        (b"# Title\n---\nlicense: mit\n---\n", ""),
        (b"---\ntags: [x]\n---\nlicense: mit\n", ""),
        (b"\xff\xfe", ""),
    ],
)
def test_licences(tmp_path: Path, readme: bytes, declared: str) -> None:
    names = ["LICENSE", "LICENCE.txt", "NOTICE.md", "COPYING", "sub/LICENSE-MIT", "USE_POLICY.md", "licenses.json"]
    facts = facts_of(tmp_path, dict.fromkeys(names, b"") | {"README.md": readme})
    assert facts.license_files == tuple(sorted(names[:-1]))
    assert facts.license == declared


def test_json_holds_what_is_there(tmp_path: Path) -> None:
    assert facts_of(tmp_path, {"config.json": b"{}"}).to_json() == {}
    files = {
        "a.pkl": b"",
        "b.py": b"",
        "LICENSE": b"",
        "chat_template.jinja": b"",
        "c.json": b'{"auto_map": "r/r--x.X"}',
    }
    assert facts_of(tmp_path, files | {"d.json": b'{"model_file": "b.py"}'}).to_json() == {
        "pickles": ["a.pkl"],
        "code": ["b.py"],
        "auto-map": ["c.json: r/r--x.X"],
        "remote-repos": ["r/r"],
        "model-file": ["d.json: b.py"],
        "chat-template": "chat_template.jinja",
        "license-files": ["LICENSE"],
    }
