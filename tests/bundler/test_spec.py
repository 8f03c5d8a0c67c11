"""The spec: what it accepts, and that each mistake is named with file, key path and remedy."""

from pathlib import Path

import pytest

from bundler.spec import IndexSpec, PackagesSpec, PythonSpec, host_target
from bundler.specfile import check_spec, init_spec, load_spec
from bundler.units import parse_size
from manifests.errors import SpecError
from manifests.manifest import HostNeeds, Probe, Target

FULL = """
[bundle]
name = "demo"
version = "1.0.0"
[target]
platform = "x86_64-manylinux_2_28"
python = "3.11"
accelerator = "cpu"
[packages]
requirements = ["six>=1.16"]
[[model]]
name = "m"
source = "dir:model"
adapter = "bge-m3"
[model.settings]
batch_size = 12
[[model]]
name = "c"
source = "dir:chat"
adapter = "causal-lm"
[model.settings]
temperature = 0.7
[[probe]]
model = "m"
inputs = ["hello"]
[requires]
memory = "1.5 GiB"
disk = "2 GB"
cpu-cores = 4
[requires.recommended]
memory = "2 GiB"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "demo.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_full_spec_is_parsed(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, FULL))
    assert spec.target == Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
    assert spec.minimum == HostNeeds(cpu_cores=4, memory=1610612736, disk=2_000_000_000)
    assert spec.recommended == HostNeeds(memory=2 * 1024**3)
    assert [model.settings for model in spec.models] == [{"batch_size": 12}, {"temperature": "0.7"}]
    assert spec.probes == (Probe(model="m", kind="embedding", inputs=("hello",)),)
    assert spec.policy == {"pickle": "refuse", "remote-code": "refuse"}
    assert spec.lock_path == tmp_path / "demo.lock"
    assert spec.resolve_folder("../x") == tmp_path.parent / "x"


def test_target_defaults_to_the_host(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, '[bundle]\nname = "a"\nversion = "1"\n')).target == host_target()


def test_digest_ignores_comments_and_place_but_not_content(tmp_path: Path) -> None:
    first = load_spec(write(tmp_path, FULL)).digest
    other = tmp_path / "other"
    other.mkdir()
    assert load_spec(write(other, f"# a comment\n{FULL}\n\n")).digest == first
    assert load_spec(write(other, FULL.replace("0.7", "0.8"))).digest != first
    assert load_spec(write(other, FULL.replace('"hello"', '"hullo"'))).digest != first


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("[requires]", "[requries]", "requries: unknown key", "did you mean 'requires'?"),
        ("cpu-cores", "cpu_cores", "requires.cpu_cores: unknown key", "did you mean 'cpu-cores'?"),
        ("adapter =", "adaptor =", "model[0].adaptor: unknown key", "did you mean 'adapter'?"),
        ('"bge-m3"', '"bge-m4"', "model[0].adapter: 'bge-m4' is not one of", "did you mean 'bge-m3'?"),
        ("[packages]", "[python]\n[packages]", "python.version: expected one of version, file and url, got none", ""),
        ("[packages]", '[python]\nversion = "3.11"\nurl = "x"\n[packages]', "got version, url", ""),
        ("[packages]", '[python]\nfile = "x.tar.gz"\n[packages]', "python.sha256: missing", ""),
        ("[packages]", '[packages]\nextras = ["x"]', "packages.extras: there is no pyproject", "pyproject.toml"),
        ("[packages]", '[packages]\n[[packages.index]]\nurl = "https://h/"\npackages = []\n[x]', "x: unknown key", ""),
        ("[packages]", '[env]\nlower = "x"\n[packages]', "env.lower: is not the name of a variable", ""),
        ("[packages]", '[env]\nA = "x\\ny"\n[packages]', "env.A: holds a line break", ""),
        ('"dir:model"', '"hf:a b/c"', "does not have the form hf:ORG/NAME@REVISION", ""),
        ('"dir:model"', '"hf:"', "nothing follows the colon", ""),
        ('"dir:model"', '"wheel:a"', "does not have the form wheel:DISTRIBUTION==VERSION", ""),
        ('"dir:model"', '"git:a"', "doesn't begin with dir:, hf: or wheel:", ""),
        ('"1.5 GiB"', '"lots"', "requires.memory: 'lots' is not a size such as '32 GiB'", ""),
        ('"3.11"', '"3.10"', "target.python: 3.10 is older than 3.11", ""),
        ("manylinux_2_28", "linux", "target.platform: 'x86_64-linux' is not a platform", "uv's names"),
        ('"cpu"', '"gpu"', "target.accelerator: 'gpu' is not cpu, mps or cuda-X.Y", ""),
        ('model = "m"', 'model = "n"', "probe[0].model: 'n' is not one of m", ""),
        ("0.7", "nan", "model[1].settings.temperature: nan is not a number", ""),
        ("0.7", "-1", "model[1].settings.temperature: expected 0 (greedy) to 100, got -1", ""),
        (
            "batch_size",
            "bacth_size",
            "model[0].settings.bacth_size: adapter 'bge-m3' has no such setting",
            "batch_size",
        ),
        ("batch_size = 12", "tokenizer = 'x'", "model[0].settings.tokenizer: refused: ", "remove the key"),
        ("batch_size = 12", "int8 = 'yes'", "model[0].settings.int8: expected a boolean, got a string", ""),
        ("batch_size = 12", "int8 = true\npack_weights = true", "model[0].settings.pack_weights: contradicts int8", ""),
        ("0.7", "1979-05-27", "model[1].settings.temperature: expected text", ""),
        ('version = "1.0.0"', "", "bundle.version: missing", ""),
        (
            "[[probe]]",
            '[[app]]\nsource = "x.whl"\n[[probe]]',
            "'x.whl' doesn't begin with dir:, git:, project: or wh",
            "",
        ),
        (
            "[[probe]]",
            '[[app]]\nsource = "git:x@main"\n[[probe]]',
            "does not have the form git:CHECKOUT@COMMIT",
            "rev-parse",
        ),
        ("0.7", "true\n[x]", "x: unknown key", ""),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    assert old in FULL
    path = write(tmp_path, FULL.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("accelerator", "device", "fits"),
    [
        ("cpu", "cuda", False),
        ("cpu", "cuda:1", False),
        ("cpu", "mps", False),
        ("cpu", "auto", True),
        ("cuda-12.6", "cuda:1", True),
        ("cuda-12.6", "cpu", True),
        ("cuda-12.6", "mps", False),
    ],
)
def test_a_device_that_the_target_lacks(tmp_path: Path, accelerator: str, device: str, *, fits: bool) -> None:
    text = FULL.replace('accelerator = "cpu"', f'accelerator = "{accelerator}"')
    path = write(tmp_path, text.replace("batch_size = 12", f'device = "{device}"'))
    if fits:
        assert load_spec(path).models[0].settings == {"device": device}
        return
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    told = f"{path}: model 'm': settings.device: {device!r} doesn't fit the target's accelerator, {accelerator}"
    assert caught.value.message == told
    assert caught.value.hint == 'leave device out: "auto" takes the best that is there; or change target.accelerator'


def test_syntax_errors_name_the_line_and_never_quote_it(tmp_path: Path) -> None:
    path = write(tmp_path, '[env]\nTOKEN = "hunter2\n')
    with pytest.raises(SpecError, match=r"demo\.toml: line 2, column \d+: ") as caught:
        load_spec(path)
    assert caught.value.hint == (
        "text stands in straight quotes, true and false are in small letters, a backslash is written twice"
    )
    assert "hunter2" not in caught.value.render()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "none.toml")
    assert caught.value.message == f"{tmp_path / 'none.toml'}: No such file or directory"


def test_check_reports_everything_together(tmp_path: Path) -> None:
    text = FULL.replace('"six>=1.16"', '"six>=", "a @ https://x.invalid/a.whl"') + '[[app]]\nsource = "dir:web"\n'
    spec = load_spec(write(tmp_path, text))
    with pytest.raises(SpecError) as caught:
        check_spec(spec)
    lines = caught.value.message.splitlines()
    assert len(lines) == 5
    assert "packages.requirements[0]: 'six>=' is not a requirement" in lines[0]
    assert "packages.requirements[1]" in lines[1]
    assert "a direct url is not supported" in lines[1]
    assert lines[2].endswith(f"model 'm': source: {tmp_path / 'model'} is not a folder")
    assert lines[3].endswith(f"model 'c': source: {tmp_path / 'chat'} is not a folder")
    assert lines[4].endswith(f"app 'web': source: {tmp_path / 'web'} is not a folder")


def test_init_writes_a_spec_that_passes_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "My Bundle.toml"
    init_spec(path)
    written = path.read_bytes()
    spec = load_spec(path)
    check_spec(spec)
    assert (spec.name, spec.target, spec.models) == ("my-bundle", host_target(), ())
    with pytest.raises(SpecError, match="exists already"):
        init_spec(path)
    assert path.read_bytes() == written


def test_shipped_quickstart_passes() -> None:
    spec = load_spec(Path(__file__).parents[2] / "manifests" / "bundles" / "quickstart.toml")
    check_spec(spec)
    assert [model.name for model in spec.models] == ["minilm", "smollm2"]
    assert [probe.kind for probe in spec.probes] == ["embedding", "chat"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("32 GiB", 32 * 1024**3), ("1.5kB", 1500), ("0.000001 MB", 1), ("7 b", 7), ("1TB", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "32", "GiB", "-1 GB", "1 XB", "1e3 GB", "999999999999999 PiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size|larger than any disk"):
        parse_size(text)


def test_index_takes_no_credentials(tmp_path: Path) -> None:
    index = '[[packages.index]]\nurl = "https://user:secret@host.invalid/simple"\npackages = ["torch"]\n'
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, FULL.replace("[[model]]", f"{index}[[model]]")))
    assert caught.value.message.endswith("packages.index[0].url: credentials don't belong in a spec")
    assert "secret" not in caught.value.render()


def test_sources_of_packages_and_interpreter(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("six\n", encoding="utf-8")
    keys = (
        'files = ["r.txt"]\nbuild-from-source = ["x"]\n[[packages.index]]\nurl = "https://h/"\npackages = ["torch"]\n'
    )
    text = FULL.replace("[packages]\n", f'[python]\nversion = "3.11.9"\n[env]\nLOG_LEVEL = "INFO"\n[packages]\n{keys}')
    # requirements must stay within [packages]
    text = text.replace('requirements = ["six>=1.16"]\n', "", 1)
    spec = load_spec(write(tmp_path, text))
    assert spec.packages == PackagesSpec(
        files=("r.txt",), build_from_source=("x",), indexes=(IndexSpec(url="https://h/", packages=("torch",)),)
    )
    assert spec.python == PythonSpec(version="3.11.9")
    assert spec.environment == {"LOG_LEVEL": "INFO"}
    before = spec.digest
    (tmp_path / "r.txt").write_text("six==1.17.0\n", encoding="utf-8")
    assert load_spec(spec.path).digest != before
    (tmp_path / "r.txt").unlink()
    with pytest.raises(SpecError, match=r"packages: .*r\.txt: No such file"):
        load_spec(spec.path)


def test_extends_lays_tables_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "common.toml").write_text(FULL, encoding="utf-8")
    text = (
        'extends = "common.toml"\n[target]\nplatform = "aarch64-manylinux_2_28"\n[packages]\nrequirements = ["idna"]\n'
        '[[model]]\nname = "n"\nsource = "dir:other"\nadapter = "hcx"\n'
        '[[model]]\nname = "m"\nsource = "dir:mine"\nadapter = "bge-m3"\n'
    )
    spec = load_spec(write(tmp_path, text))
    assert (spec.name, spec.target.python) == ("demo", "3.11")
    assert spec.target.platform == "aarch64-manylinux_2_28"
    assert spec.packages.requirements == ("idna",)
    assert [(model.name, model.location) for model in spec.models] == [("m", "mine"), ("c", "chat"), ("n", "other")]
    assert spec.lock_path == tmp_path / "demo.lock"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"demo.toml"', "extends: demo.toml leads back here"),
        ('"none.toml"', "none.toml: No such file or directory"),
        ("3", "extends: expected the name of another spec"),
    ],
)
def test_extends_of_nothing(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, f"extends = {value}\n{FULL}"))
    assert message in caught.value.message


def test_platform_of_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    spec = load_spec(path, platform="aarch64-apple-darwin")
    assert spec.target.label == "aarch64-apple-darwin-cp311-cpu"
    assert spec.lock_path == tmp_path / "demo.aarch64-apple-darwin-cp311-cpu.lock"
    assert spec.digest != load_spec(path).digest
    assert load_spec(path, platform="x86_64-manylinux_2_28").lock_path == tmp_path / "demo.lock"
    with pytest.raises(SpecError, match="--target: platform: 'vax' is not a platform"):
        load_spec(path, platform="vax")
