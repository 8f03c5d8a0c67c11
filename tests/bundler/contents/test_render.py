"""Rendered files: golden where small, read back by a YAML parser, and nothing undefined."""

import ast
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from bundler.contents.render import (
    OFFLINE_VARIABLES,
    Subject,
    render_payload,
    render_template,
    render_verify_text,
    sums_text,
)
from bundler.selfpack import template_root
from manifests.canonical import Json
from manifests.manifest import ModelEntry
from tests.factories import TARGET, make_entry


def subject(*models: ModelEntry) -> Subject:
    return Subject(name="demo", version="1.0.0", target=TARGET, models=models)


def model(name: str = "bge-m3", adapter: str = "bge-m3", settings: Mapping[str, Json] | None = None) -> ModelEntry:
    return ModelEntry(
        name=name, adapter=adapter, path=f"models/{name}", format="safetensors", origin="", settings=settings or {}
    )


def settings_text(settings: Mapping[str, Json]) -> str:
    return render_payload(subject(model(settings=settings)))["config/bge_m3.yaml"].decode()


def test_the_files_of_a_bundle() -> None:
    assert list(render_payload(subject())) == [
        "bootstrap/install.sh",
        "bootstrap/Dockerfile.offline",
        "docs/INSTALL.md",
        "config/offline.env",
    ]
    assert list(render_payload(subject(model(), model("hcx", "hcx"))))[4:] == [
        "config/sealift.service",
        "config/sealift-verify.service",
        "config/sealift-verify.timer",
        "config/launch.sh",
        "config/bge_m3.yaml",
        "config/hcx.yaml",
    ]


def test_the_settings_of_a_model() -> None:
    text = settings_text({"use_fp16": True, "batch_size": 12, "temperature": "0.5", "note": "a: b", "top": None})
    assert text == (
        "# Settings of the model bge-m3 (bge-m3). Signed with the bundle: to change some, write just those\n"
        "# keys into PREFIX/etc/bge_m3.yaml. They override these key by key, and they survive upgrades.\n"
        "batch_size: 12\n"
        'note: "a: b"\n'
        "temperature: 0.5\n"
        "top: null\n"
        "use_fp16: true\n"
    )


def test_a_model_without_settings_is_an_empty_mapping() -> None:
    assert yaml.safe_load(settings_text({})) == {}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0.5", 0.5),
        ("-0.25", -0.25),
        ("1e-05", 1e-05),
        ("1.5e-07", 1.5e-07),
        ("1e+22", 1e22),
        ("1.0", 1.0),
        ("12e5", "12e5"),
        ("1.10", "1.10"),
        ("007", "007"),
        ("yes", "yes"),
        ("null", "null"),
        ("", ""),
        ("\ud55c\uae00 \u2028 \x85", "\ud55c\uae00 \u2028 \x85"),
    ],
)
def test_a_string_is_a_number_again_only_where_it_was_one(written: str, read: object) -> None:
    found = yaml.safe_load(settings_text({"value": written}))["value"]
    assert (found, type(found)) == (read, type(read))


plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner))
keys = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)


@example({"no": 1, "y": None, "null": {"on": True}, "batch_size": 3})
@given(st.dictionaries(keys, values, max_size=4))
def test_settings_read_back_as_they_were(settings: dict[str, Json]) -> None:
    def is_decimal(value: object) -> bool:
        return isinstance(value, str) and value[-1:].isdecimal()

    kept = {key: value for key, value in settings.items() if not is_decimal(value)}
    assert yaml.safe_load(settings_text(kept)) == kept


def test_the_environment_file() -> None:
    lines = render_payload(subject(model(), model("my.model", "causal-lm")))["config/offline.env"].decode().splitlines()
    assert "BGE_M3_MODEL_PATH=${PREFIX}/current/models/bge-m3" in lines
    assert "MY_MODEL_MODEL_PATH=${PREFIX}/current/models/my.model" in lines
    assert "USE_GPU=false" in lines
    names = [line.partition("=")[0] for line in lines if line and not line.startswith("#")]
    assert len(set(names)) == len(names)
    guide = (
        *("ENVIRONMENT", "NETWORK_MODE", "HCX_MODEL_PATH", "BGE_M3_MODEL_PATH", "DEVICE", "USE_GPU"),
        *("ENABLE_MODEL_CACHE", "CACHE_DIR", "LOG_LEVEL", "LOG_FILE", "ENABLE_EXTERNAL_API", "GEMINI_API_KEY"),
        "CLOVA_STUDIO_API_KEY",
    )
    with_hcx = render_payload(subject(model(), model("hcx", "hcx")))["config/offline.env"].decode()
    assert [name for name in guide if f"\n{name}=" not in with_hcx] == []
    assert "\nGEMINI_API_KEY=offline-unused\n" in with_hcx


def test_the_environment_of_a_spec_is_laid_over_and_read_back_by_sh() -> None:
    own = {"LOG_LEVEL": "DEBUG", "ZED": 'a "b" `c` \\ 한글', "CACHE_DIR": "/data/cache", "HERE": "${PREFIX}/x y"}
    text = render_payload(replace(subject(), environment=own))["config/offline.env"].decode()
    assert "\nCACHE_DIR=/data/cache\n" in text
    assert text.count("LOG_LEVEL=") == 1
    script = 'set -a; . /dev/stdin; printf "%s|%s|%s" "$LOG_LEVEL" "$ZED" "$HERE"'
    done = subprocess.run(
        ["sh", "-c", f"PREFIX=/opt/rag; {script}"],  # noqa: S607 # the host's own sh
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == 'DEBUG|a "b" `c` \\ 한글|/opt/rag/x y'


def test_the_variables_of_the_seal_are_those_of_the_closed_side() -> None:
    path = Path(__file__).parents[3] / "runtime" / "seal.py"
    fixed = next(
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "OFFLINE_VARIABLES" and node.value
    )
    assert {name: fixed.get(name) for name in OFFLINE_VARIABLES} == dict(OFFLINE_VARIABLES)


def test_the_install_guide_tells_of_launch_only_where_there_is_something_to_launch() -> None:
    without = render_payload(subject())["docs/INSTALL.md"].decode()
    assert "launch" not in without.split("Exit codes", 1)[0]
    with_model = render_payload(subject(model()))["docs/INSTALL.md"].decode()
    assert "- `bge-m3` (bge-m3)\n" in with_model
    assert "python3 -I -S KIT/runtime.pyz launch --prefix /opt/demo --port 8000`\n" in with_model


def test_the_install_guide_has_the_report_that_is_filed() -> None:
    for models in ((), (model(),)):
        text = render_payload(subject(*models))["docs/INSTALL.md"].decode()
        command = "KIT/runtime.pyz verify --prefix /opt/demo --trust KIT/allowed_signers --report go-live`\n"
        assert f"3. Verify before go-live, and file what it says: `python3 -I -S {command}" in text
        assert "the page to be signed and filed, `go-live-RELEASE-TIME.html`, and its data;" in text


def test_verify_text_names_the_bundle() -> None:
    text = render_verify_text(subject()).decode()
    assert "tar -xf demo-1.0.0-x86_64-manylinux_2_28-cp311-cpu.bundle.tar manifest.json manifest.json.sig\n" in text


def test_an_undefined_name_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'stem' is undefined"):
        render_template("VERIFY.txt.j2", {})


def test_every_template_is_rendered_by_something() -> None:
    used = {"install.sh.j2", "INSTALL.md.j2", "offline.env.j2", "sealift.service.j2", "model.yaml.j2", "VERIFY.txt.j2"}
    assert used <= {path.name for path in template_root().iterdir()}


def test_sums_text_is_what_sha256sum_reads() -> None:
    entries = [make_entry("docs/b", b"b"), make_entry("docs/\ud55c", b"a")]
    assert sums_text(entries).decode() == (
        "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d  docs/b\n"
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  docs/\ud55c\n"
    )
