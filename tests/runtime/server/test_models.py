"""Which models a release has, and where their settings come from."""

from pathlib import Path

import pytest

from manifests.errors import AdapterError, UsageError
from runtime.adapters.base import ModelConfig
from runtime.server.models import choose_models, load_models
from tests.factories_models import write_json
from tests.runtime.server.conftest import write_release


def small_release(release: Path) -> Path:
    for name in ("bge-m3", "llama"):
        write_json(release / "models" / name / "config.json", {})
    return write_release(release, {"bge-m3": ("bge-m3", {"max_length": 64}), "llama": ("causal-lm", {"top_p": "0.9"})})


def test_settings_of_the_manifest(tmp_path: Path) -> None:
    assert load_models(small_release(tmp_path)) == [
        ModelConfig(name="bge-m3", adapter="bge-m3", directory=tmp_path / "models/bge-m3", settings={"max_length": 64}),
        ModelConfig(name="llama", adapter="causal-lm", directory=tmp_path / "models/llama", settings={"top_p": "0.9"}),
    ]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("max_length: 32\nuse_fp16: true\n", {"max_length": 32, "use_fp16": True}),
        (
            "bge_m3:\n  model_path: /srv/current/models/bge-m3\n  performance: {batch_size: 12}\n",
            {"performance": {"batch_size": 12}},
        ),
        ("# nothing\n", {}),
        ("{}\n", {}),
    ],
)
def test_the_rendered_file_replaces_the_manifests_settings(tmp_path: Path, text: str, settings: object) -> None:
    release = small_release(tmp_path)
    (release / "config").mkdir()
    (release / "config" / "bge_m3.yaml").write_text(text, encoding="utf-8")
    assert load_models(release)[0].settings == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "can't be read as YAML: "),
        ("- 1\n", "expected a table of settings"),
        ("1: 2\n", "expected a table of settings"),
        ("x: !!python/object:os.system {}\n", "can't be read as YAML: "),
        ("model_path: /models/other\n", "model_path '/models/other' is not the release's models/bge-m3"),
    ],
)
def test_settings_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    release = small_release(tmp_path)
    (release / "config").mkdir()
    path = release / "config" / "bge_m3.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError) as caught:
        load_models(release)
    assert caught.value.message.startswith(f"model 'bge-m3': {path}: {message}")


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_models(tmp_path)
    expected = f"{tmp_path}: not a release, its manifest.json can't be read: No such file or directory"
    assert caught.value.message == expected


def test_models_are_chosen_by_name(tmp_path: Path) -> None:
    models = load_models(small_release(tmp_path))
    assert choose_models(models, []) == models
    assert choose_models(models, ["llama"]) == models[1:]
    with pytest.raises(UsageError) as caught:
        choose_models(models, ["lama"])
    assert (caught.value.message, caught.value.hint) == ("this release has no model 'lama'", "did you mean 'llama'?")
    with pytest.raises(AdapterError, match=r"^this release has no models to serve$"):
        choose_models([], [])


def test_the_operators_own_file_overrides_key_by_key(tmp_path: Path) -> None:
    folder = tmp_path / "releases" / "1.0.0-abc"
    folder.mkdir(parents=True)
    release = small_release(folder)
    signed = "max_length: 32\nperformance:\n  batch_size: 12\n  use_fp16: true\n"
    for place, text in ((release / "config", signed), (tmp_path / "etc", "batch_size: 3\ndevice: cpu\n")):
        place.mkdir()
        (place / "bge_m3.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "current").symlink_to(release)
    expected = {"max_length": 32, "performance": {"use_fp16": True}, "batch_size": 3, "device": "cpu"}
    assert load_models(tmp_path / "current")[0].settings == expected
    (tmp_path / "etc" / "bge_m3.yaml").write_text("performance: {use_fp16: false}\n", encoding="utf-8")
    overridden = load_models(tmp_path / "current")[0].settings
    assert overridden == {"max_length": 32, "performance": {"batch_size": 12, "use_fp16": False}}
    (tmp_path / "etc" / "bge_m3.yaml").unlink()
    assert load_models(tmp_path / "current")[0].settings["performance"] == {"batch_size": 12, "use_fp16": True}


@pytest.mark.parametrize(
    ("variables", "device"),
    [
        ({}, None),
        ({"DEVICE": "auto", "USE_GPU": "true"}, None),
        ({"DEVICE": "auto", "USE_GPU": "false"}, "cpu"),
        ({"USE_GPU": "0"}, "cpu"),
        ({"DEVICE": "cuda:1", "USE_GPU": "false"}, "cuda:1"),
    ],
)
def test_variables_choose_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], device: str | None
) -> None:
    release = small_release(tmp_path)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert load_models(release)[0].settings.get("device") == device
    monkeypatch.setenv("USE_GPU", "maybe")
    with pytest.raises(AdapterError, match=r"^USE_GPU: expected true or false, got 'maybe'$"):
        load_models(release)
