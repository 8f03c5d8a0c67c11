"""The builder's command line: help, version, JSON, usage errors; data on stdout and all the rest on stderr."""

import json
import re
from pathlib import Path

import pytest

from bundler.cli import main
from manifests import __version__
from tests.factories_cli import Builder, wheel_links, write_spec

FIXED = ("init", "check", "lock", "build", "keygen", "sign", "manifest", "inspect", "rehearse", "quickstart")
COMMANDS = sorted(main.commands)
WITHOUT_JSON = ("init", "manifest", "quickstart")
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """A person with an empty home."""
    return Builder(folder=tmp_path, links=(wheel_links(),))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Builder, Path]:
    """Someone who has a spec of nothing, a lock and an unsigned bundle; read only."""
    builder = Builder(folder=tmp_path_factory.mktemp("built"), links=(wheel_links(),))
    write_spec(builder.folder / "demo.toml")
    document = builder.json("build", "demo.toml", "--output", "out", "--unsigned", "--no-rehearsal")
    return builder, builder.folder / document["bundle"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_of_every_command(builder: Builder, command: str) -> None:
    helped = builder.run(command, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"Usage: python -m bundler.cli {command} ")
    assert ("--json" in helped.stdout) == (command not in WITHOUT_JSON)
    version = builder.run(command, "--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"bundler, version {__version__}\n", "")


def test_help_lists_every_command(builder: Builder) -> None:
    helped = builder.run("--help")
    assert helped.returncode == 0
    listed = helped.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed if line[2] != " "] == COMMANDS
    assert set(FIXED) <= set(COMMANDS)
    assert builder.run("--version").stdout == f"bundler, version {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biuld"], "No such command 'biuld'"),
        (["check"], "Missing argument 'SPEC'"),
        (["check", "x.toml", "--jsn"], "No such option"),
        (["build", "x.toml", "--unsigned"], "Missing option '--output'"),
        (["build", "x.toml", "--output", "o"], "error: build takes --key FILE or --unsigned, one of the two"),
        (["build", "x.toml", "--output", "o", "--unsigned", "--key", "k"], "error: build takes --key FILE or"),
        (["keygen", "k"], "Missing option '--identity'"),
        (["sign", "b"], "error: sign takes --key FILE or --attach FILE.sig, one of the two"),
        (["sign", "b", "--key", "k", "--attach", "s"], "error: sign takes --key FILE or --attach FILE.sig"),
        (["rehearse", "b"], "Missing option '--trust'"),
        (["rehearse", "b", "--trust", "t"], "error: t: no such allowed_signers file\nhint: bundler keygen writes"),
        (["check", "x.toml"], "error: x.toml: No such file or directory\nhint: `bundler init x.toml` writes"),
        (["lock", "x.toml"], "error: x.toml: No such file or directory"),
        (["inspect", "none.bundle.tar"], "error: none.bundle.tar: no such bundle"),
        (["manifest", "none.bundle.tar"], "error: none.bundle.tar: no such bundle"),
        (["keygen", "k", "--identity", "two words"], "error: "),
    ],
)
def test_usage_errors(builder: Builder, words: list[str], message: str) -> None:
    code, told = builder.refused(*words)
    assert code == 2, told
    assert message in told
    assert list(builder.folder.iterdir()) == []


def test_init_writes_a_spec_that_checks_and_never_overwrites(builder: Builder) -> None:
    done = builder.run("init", "rag.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "rag.toml written; edit it, then: bundler check rag.toml\n"
    before = (builder.folder / "rag.toml").read_bytes()
    checked = builder.run("check", "rag.toml")
    assert re.fullmatch(r"rag\.toml: good \(rag 0\.1\.0 for \S+\)\n", checked.stdout), checked.stderr
    assert builder.refused("init", "rag.toml") == (
        2,
        "error: rag.toml: exists already\nhint: choose another name; it is never overwritten\n",
    )
    assert (builder.folder / "rag.toml").read_bytes() == before


def test_init_names_its_default(builder: Builder) -> None:
    assert builder.run("init").stdout.startswith("bundle.toml written; ")
    assert [path.name for path in builder.folder.iterdir()] == ["bundle.toml"]


def test_check_needs_no_network_and_writes_nothing(builder: Builder) -> None:
    write_spec(builder.folder / "demo.toml", "six")
    offline = Builder(folder=builder.folder, variables={"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/"})
    document = offline.json("check", "demo.toml")
    assert sorted(document) == ["digest", "name", "target", "version"]
    assert (document["name"], document["version"]) == ("demo", "1.0.0")
    assert [path.name for path in builder.folder.iterdir()] == ["demo.toml"]


def test_lock_and_build_give_one_json_document(built: tuple[Builder, Path]) -> None:
    builder, tar = built
    locked = builder.json("lock", "demo.toml")
    assert locked == {"lock": "demo.lock", "models": 0, "size": locked["size"], "wheels": 0}
    assert locked["size"] > 1_000_000, "uv travels in every bundle"
    document = builder.json("build", "demo.toml", "--output", "out2", "--unsigned", "--no-rehearsal")
    assert sorted(document) == ["bundle", "digest", "kit", "kit_digest", "size"]
    assert document["size"] == (builder.folder / document["bundle"]).stat().st_size == tar.stat().st_size
    assert document["kit"] == document["bundle"].replace(".bundle.tar", ".kit")


def test_build_tells_people_what_to_do_next(built: tuple[Builder, Path]) -> None:
    builder, _ = built
    done = builder.run("build", "demo.toml", "--output", "out3", "--unsigned", "--no-rehearsal")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("out3/demo-1.0.0-")
    assert re.search(r"\.kit  its digest, for the telephone: [0-9a-f]{64}$", lines[1])
    assert re.fullmatch(r"manifest digest [0-9a-f]{64}", lines[2])
    assert lines[3] == "not signed yet: bundler sign BUNDLE --key FILE"
    assert done.stderr == "... pack\n"


def test_keygen_writes_three_files_and_keeps_what_is_there(builder: Builder) -> None:
    document = builder.json("keygen", "keys/release", "--identity", "release@example.com")
    assert FINGERPRINT.fullmatch(document["fingerprint"])
    names = ["release", "release.allowed_signers", "release.pub"]
    assert sorted(path.name for path in (builder.folder / "keys").iterdir()) == names
    assert (builder.folder / "keys/release").stat().st_mode & 0o777 == 0o600
    before = (builder.folder / "keys/release").read_bytes()
    code, told = builder.refused("keygen", "keys/release", "--identity", "other@example.com")
    assert code == 2, told
    assert "keys/release" in told
    assert (builder.folder / "keys/release").read_bytes() == before


def test_inspect_and_manifest_put_data_on_stdout(built: tuple[Builder, Path]) -> None:
    builder, tar = built
    document = builder.json("inspect", tar)
    assert (document["name"], document["signatures"], document["models"]) == ("demo", [], [])
    assert {"bootstrap", "wheel", "doc"} <= set(document["kinds"])
    inspected = builder.run("inspect", tar)
    assert inspected.stderr == ""
    assert inspected.stdout.splitlines()[1] == f"manifest digest {document['digest']}"
    assert inspected.stdout.splitlines()[-1] == "not signed"
    printed = builder.run("manifest", tar)
    assert json.loads(printed.stdout)["name"] == "demo"
    assert printed.stdout.encode() == tar.read_bytes()[512 : 512 + len(printed.stdout)]


def test_a_key_that_is_not_there_leaves_the_bundle_alone(built: tuple[Builder, Path]) -> None:
    builder, tar = built
    before = tar.read_bytes()
    code, told = builder.refused("sign", tar, "--key", "no-such-key")
    assert (code, told.splitlines()[0]) == (2, "error: no-such-key: no such key"), told
    assert tar.read_bytes() == before


def test_a_signature_that_is_not_there_or_none(built: tuple[Builder, Path]) -> None:
    builder, tar = built
    before = tar.read_bytes()
    code, told = builder.refused("sign", tar, "--attach", "none.sig")
    hint = "ssh-keygen -Y sign writes it: manifest.json.sig"
    assert (code, told) == (2, f"error: none.sig: no such file\nhint: {hint}\n")
    (builder.folder / "junk.sig").write_text("junk\n")
    code, told = builder.refused("sign", tar, "--attach", "junk.sig")
    assert code == 4
    assert told.startswith("error: the file is not an SSH signature: ")
    assert "ssh-keygen -Y sign -f KEY -n sealift-bundle-v1 manifest.json\n" in told
    assert tar.read_bytes() == before


def test_a_public_key_does_not_sign(built: tuple[Builder, Path]) -> None:
    builder, tar = built
    (builder.folder / "some.pub").write_text("ssh-ed25519 AAAA someone\n")
    code, told = builder.refused("sign", tar, "--key", "some.pub")
    assert (code, told) == (
        2,
        "error: some.pub: can't be used to sign: it is a public key\nhint: give the private key: some\n",
    )


def test_messages_of_inspect_for_what_is_no_bundle(builder: Builder) -> None:
    (builder.folder / "b.bundle.tar").write_bytes(b"x" * 100_000)
    code, told = builder.refused("inspect", "b.bundle.tar")
    assert (code, told) == (
        5,
        (
            "error: b.bundle.tar: is not a Sealift bundle: it does not begin with manifest.json\n"
            "hint: give the path of a NAME-VERSION-TARGET.bundle.tar\n"
        ),
    )
