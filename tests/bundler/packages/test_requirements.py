"""Requirements from every place that a spec may name, and what is refused there, by file and line."""

from pathlib import Path
from typing import Final

import pytest

from bundler.packages.requirements import Inputs, check_hashes, collect_requirements
from bundler.packages.resolver import Pin
from bundler.spec import PackagesSpec, Spec
from bundler.specfile import check_spec, load_spec
from manifests.errors import IntegrityError, SourceError, SpecError
from manifests.manifest import Target

LINUX: Final = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
WINDOWS: Final = Target(platform="x86_64-pc-windows-msvc", python="3.12", accelerator="cpu")
ONE, TWO = "1" * 64, "2" * 64


def spec_of(folder: Path, target: Target = LINUX, **packages: object) -> Spec:
    return Spec(
        path=folder / "spec.toml",
        name="demo",
        version="1",
        target=target,
        packages=PackagesSpec(**packages),  # type: ignore[arg-type] # each test names its own keys
    )


def collect(folder: Path, target: Target = LINUX, **packages: object) -> Inputs:
    return collect_requirements(spec_of(folder, target, **packages))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_requirements_files_include_each_other_and_keep_their_hashes(tmp_path: Path) -> None:
    write(
        tmp_path, "req/base.txt", "-r more.txt\n--constraint=limits.txt\nsix == 1.17.0 ; python_version > '3'  # why\n"
    )
    write(
        tmp_path, "req/more.txt", f"idna==3.10 \\\n    --hash=sha256:{ONE} \\\n    --hash=sha256:{TWO}\n\n# only this\n"
    )
    write(tmp_path, "req/limits.txt", "urllib3<3\n-r deep.txt\n")
    write(tmp_path, "req/deep.txt", "\ufeffcertifi!=1\n")
    found = collect(tmp_path, requirements=("attrs", "attrs"), files=("req/base.txt",))
    assert found == Inputs(
        requirements=("attrs", "idna==3.10", "six == 1.17.0 ; python_version > '3'"),
        constraints=("urllib3<3", "certifi!=1"),
        hashes={"idna==3.10": frozenset({ONE, TWO})},
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-e ./lib", "-e can't be used here"),
        ("--editable=./lib", "--editable can't be used here"),
        ("-i https://host/simple", "-i can't be used here"),
        ("--index-url https://user:secret@host/simple", "--index-url can't be used here"),
        ("--extra-index-url=https://user:secret@host/simple", "--extra-index-url can't be used here"),
        ("--no-binary six", "--no-binary can't be used here"),
        ("--pre", "--pre can't be used here"),
        ("six @ https://user:secret@host/six.whl", "'six @ https://***@host/six.whl': a direct url is not supported"),
        ("git+https://user:secret@host/six.git", "'git+https://***@host/six.git': a direct url is not supported"),
        ("./six.whl", "'./six.whl': a direct url is not supported"),
        ("six==", "'six==' is not a requirement: "),
        ("six --global-option=x", "--global-option can't be used for a single requirement"),
        ("six==1 --hash=md5", "--hash=md5 does not have the form --hash=sha256:HEX"),
        ("-r https://user:secret@host/r.txt", "-r needs the name of a file"),
        ("-r", "-r needs the name of a file"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, "r.txt", f"# first\nidna \\\n  >=3\n{line}\n")
    with pytest.raises(SpecError) as caught:
        collect(tmp_path, files=("r.txt",))
    assert caught.value.message.startswith(f"{path}, line 4: {message}")
    assert "secret" not in caught.value.render()


def test_files_that_lead_nowhere(tmp_path: Path) -> None:
    first = write(tmp_path, "a.txt", "-rb.txt\n")
    write(tmp_path, "b.txt", "-c a.txt\n")
    with pytest.raises(SpecError, match=rf"^{tmp_path / 'b.txt'}: -r a.txt leads back here"):
        collect(tmp_path, files=("a.txt",))
    first.write_text("-r none.txt\n")
    with pytest.raises(SpecError, match=rf"^{tmp_path / 'none.txt'}: No such file or directory$"):
        collect(tmp_path, files=("a.txt",))
    first.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=rf"^{first}: is not UTF-8 text$"):
        collect(tmp_path, files=("a.txt",))


PROJECT: Final = """
[project]
name = "My.App"
dependencies = ["six>=1", "idna; sys_platform == 'win32'"]
[project.optional-dependencies]
gpu = ["numpy"]
All_of = ["my-app[gpu]", "attrs"]
[dependency-groups]
test = ["pytest", {include-group = "Lint"}]
lint = ["ruff"]
"""


def test_a_project_with_extras_and_groups(tmp_path: Path) -> None:
    write(tmp_path, "app/pyproject.toml", PROJECT)
    found = collect(tmp_path, pyproject="app/pyproject.toml", extras=("all-of",), groups=("test",))
    assert found.requirements == (*("six>=1", "idna; sys_platform == 'win32'", "numpy", "attrs", "pytest", "ruff"),)
    assert collect(tmp_path, pyproject="app/pyproject.toml").requirements == (
        *("six>=1", "idna; sys_platform == 'win32'"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[project]\ndynamic = ["dependencies"]\n', ": project.dependencies is dynamic: only its"),
        ("[project]\ndependencies = [1]\n", ": project.dependencies: expected a list of texts"),
        ('[project]\ndependencies = [\n"six",\n"x @ https://u:secret@h/x"]\n', ", line 4: 'x @ https://***@h/x': "),
        ('[project]\ndependencies = ["six", "6=="]\n', ", line 2: '6==' is not a requirement: "),
        ('[project]\ndependencies = ["x"]\n[tool.uv.sources]\nX = {path = "x"}\n', ", line 2: tool.uv.sources takes x"),
        ("[project\n", ": Expected ']' at the end of a table declaration"),
        ("project = 1\n", ": project: expected a table"),
    ],
)
def test_a_project_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "pyproject.toml", text)
    with pytest.raises(SpecError) as caught:
        collect(tmp_path, pyproject="pyproject.toml")
    assert caught.value.message.startswith(f"{path}{message}")
    assert "secret" not in caught.value.render()


def test_extras_and_groups_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "pyproject.toml", PROJECT.replace('"ruff"', '{include-group = "test"}, "ruff"'))
    for extras, groups, message in (
        (("gpus",), (), "the project has no extra 'gpus'"),
        ((), ("lints",), "the project has no group 'lints'"),
        ((), ("lint",), "dependency-groups: lint -> test -> lint is a circle"),
    ):
        with pytest.raises(SpecError) as caught:
            collect(tmp_path, pyproject="pyproject.toml", extras=extras, groups=groups)
        assert caught.value.message == f"{path}: {message}"


PYLOCK: Final = f"""
lock-version = "1.0"
created-by = "other"
extras = ["big"]
dependency-groups = ["dev"]
[[packages]]
name = "six"
version = "1.17.0"
wheels = [{{name = "six-1.17.0-py2.py3-none-any.whl", url = "https://h/six-1.17.0-py2.py3-none-any.whl", hashes = {{sha256 = "{ONE}"}}}}]
[[packages]]
name = "colorama"
version = "0.4.6"
marker = "sys_platform == 'win32'"
wheels = [{{url = "https://h/colorama-0.4.6-py3-none-any.whl", hashes = {{sha256 = "{TWO}"}}}}]
[[packages]]
name = "attrs"
version = "25.1"
marker = "'big' in extras or 'dev' in dependency_groups"
wheels = [{{url = "https://h/attrs-25.1-py3-none-any.whl", hashes = {{sha256 = "{TWO}"}}}}]
"""  # noqa: E501 # an inline table is one line in TOML


def test_a_pylock_is_read_for_the_target(tmp_path: Path) -> None:
    write(tmp_path, "pylock.toml", PYLOCK)
    linux = collect(tmp_path, lock_file="pylock.toml")
    assert linux == Inputs(requirements=("six==1.17.0",), hashes={"six==1.17.0": frozenset({ONE})})
    assert collect(tmp_path, WINDOWS, lock_file="pylock.toml").requirements == ("six==1.17.0", "colorama==0.4.6")
    assert collect(tmp_path, lock_file="pylock.toml", extras=("big",)).requirements == ("six==1.17.0", "attrs==25.1")
    assert collect(tmp_path, lock_file="pylock.toml", groups=("dev",)).requirements == ("six==1.17.0", "attrs==25.1")


def test_a_pylock_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path, "pylock.toml", PYLOCK.replace('version = "0.4.6"\n', "").replace("win32", "linux"))
    text = path.read_text()
    start = text.index("wheels", text.index("colorama"))
    path.write_text(text[:start] + 'directory = {path = "x"}\n' + text[text.index("[[packages]]", start) :])
    with pytest.raises(SpecError, match=rf"^{path}: colorama comes from no index"):
        collect(tmp_path, lock_file="pylock.toml")
    path.write_text('lock-version = "9.0"\n')
    with pytest.raises(SpecError, match=rf"^{path}: "):
        collect(tmp_path, lock_file="pylock.toml")
    other = write(tmp_path, "requirements.txt", "six\n")
    with pytest.raises(SpecError, match=rf"^{other}: packages.lock-file is neither uv.lock nor pylock.toml"):
        collect(tmp_path, lock_file="requirements.txt")


UV_LOCK: Final = """version = 1
revision = 3
requires-python = ">=3.11"

[[package]]
name = "app"
version = "1"
source = { virtual = "." }
dependencies = [{ name = "six" }, { name = "colorama", marker = "sys_platform == 'win32'" }]

[package.optional-dependencies]
more = [{ name = "attrs" }]

[package.metadata]
requires-dist = [
    { name = "attrs", marker = "extra == 'more'" },
    { name = "colorama", marker = "sys_platform == 'win32'" },
    { name = "six" },
]
provides-extras = ["more"]
"""
UV_PROJECT: Final = """[project]
name = "app"
version = "1"
requires-python = ">=3.11"
dependencies = ["six", "colorama; sys_platform == 'win32'"]
[project.optional-dependencies]
more = ["attrs"]
"""


def uv_lock(folder: Path) -> Path:
    text = UV_LOCK
    for name, version in (("attrs", "25.1"), ("colorama", "0.4.6"), ("six", "1.17.0")):
        file = f"https://host.example/{name}-{version}-py3-none-any.whl"
        text += f'\n[[package]]\nname = "{name}"\nversion = "{version}"\n'
        text += 'source = { registry = "https://host.example/simple" }\n'
        text += f'wheels = [{{ url = "{file}", hash = "sha256:{ONE}", size = 5 }}]\n'
    write(folder, "pyproject.toml", UV_PROJECT)
    return write(folder, "uv.lock", text)


def test_a_uv_lock_gives_its_versions_and_hashes_with_markers(tmp_path: Path) -> None:
    path = uv_lock(tmp_path / "project")
    found = collect(tmp_path, lock_file="project/uv.lock")
    assert [text.replace(" ", "") for text in found.requirements] == [
        "colorama==0.4.6;sys_platform=='win32'",
        "six==1.17.0",
    ]
    assert found.hashes == {"colorama==0.4.6": frozenset({ONE}), "six==1.17.0": frozenset({ONE})}
    more = collect(tmp_path, lock_file="project/uv.lock", extras=("more",)).requirements
    assert "attrs==25.1" in more
    (path.parent / "pyproject.toml").unlink()
    with pytest.raises(SourceError, match=rf"^{path}: uv can't export it: "):
        collect(tmp_path, lock_file="project/uv.lock")


def test_hashes_of_a_file_bind_what_is_resolved() -> None:
    pin = Pin(name="six", version="1.17.0", filename="six-1.17.0-py3-none-any.whl", url="https://h/six", sha256=ONE)
    check_hashes([pin], {"six==1.17.0": frozenset({ONE, TWO}), "idna==3": frozenset({TWO})})
    check_hashes([pin], {"six==1.16.0": frozenset({TWO})})
    with pytest.raises(IntegrityError) as caught:
        check_hashes([pin], {"six==1.17.0": frozenset({TWO})})
    message = f"six==1.17.0: six-1.17.0-py3-none-any.whl has sha256 {ONE}, which no --hash allows"
    assert caught.value.message == message


def test_a_lock_belongs_to_the_included_files_too(tmp_path: Path) -> None:
    spec = '[bundle]\nname = "demo"\nversion = "1"\n[packages]\nfiles = ["req/a.txt"]\n'
    path = write(tmp_path, "spec.toml", spec)
    write(tmp_path, "req/a.txt", "-r b.txt\n")
    inner = write(tmp_path, "req/b.txt", "six\n")
    before = load_spec(path)
    assert sorted(before.input_digests) == ["req/a.txt", "req/b.txt"]
    inner.write_text("six<2\n")
    assert load_spec(path).digest != before.digest
    inner.write_text("six==\n")
    with pytest.raises(SpecError, match=rf"^{inner}, line 1: 'six==' is not a requirement"):
        check_spec(load_spec(path))
