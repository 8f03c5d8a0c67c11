"""Every attack against every command that reads a bundle: exit code, message, and nothing written anywhere."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from manifests.sshsig import parse_signatures
from manifests.tarlayout import SIGNATURE_SLOT
from tests.factories_cli import ROOT
from tests.factories_closed import leftovers
from tests.hostile.corpus import CORPUS
from tests.hostile.entrypoints import CHECKING, FITS, READERS, REFUSING, arguments, expected, run
from tests.hostile.lab import Attack, Hostile, Lab, Stage

RESUMED = ("content-chunk-lies",)
"""Attacks after which the store keeps a good chunk, under a name that no release links to."""
REAL = ("head-1-gb", "tar-symlink", "json-deep-100000", "sig-stranger", "content-mixed", "folder-manifest-is-fifo")


def snapshot(folder: Path) -> Mapping[str, tuple[object, ...]]:
    """Return what everything below ``folder`` is: kind, mode, size, times, and a small file's content."""
    found: dict[str, tuple[object, ...]] = {}
    for root, folders, files in os.walk(folder):
        if root.count("/ddddddddd") > 3:  # the attack by depth: the rest is as deep as it is dull
            folders.clear()
        for name in (*folders, *files):
            path = Path(root, name)
            status = path.lstat()
            is_file = stat.S_ISREG(status.st_mode)
            content = path.read_bytes() if is_file and status.st_size < 1 << 20 else b""
            times = status.st_mtime_ns if is_file else 0
            found[str(path)] = (status.st_mode, status.st_size if is_file else 0, times, content)
    return found


def build(attack: Attack, lab: Lab) -> Hostile:
    made = attack.build(lab)
    return made if isinstance(made, Hostile) else Hostile(path=made, trust=lab.key.allowed_signers)


def check_prefix(prefix: Path, attack: Attack) -> None:
    """Require that an install left no prefix, or where it had begun to copy, nothing but verified files and locks."""
    begun = attack.stage is Stage.CONTENT and "install" not in attack.others
    if not begun and expected(attack, "install") != FITS["install"]:
        assert not prefix.exists()
    if prefix.exists():
        partial = [name for name in leftovers(prefix) if name.startswith("store/") and name.endswith(".partial")]
        assert leftovers(prefix) == (partial if attack.name in RESUMED else [])
        assert list((prefix / "releases").iterdir()) == []
        assert not (prefix / "current").is_symlink()


@pytest.mark.parametrize("attack", CORPUS, ids=lambda attack: attack.name)
def test_refused_everywhere(attack: Attack, lab: Lab, house: Path) -> None:
    hostile = build(attack, lab)
    before = snapshot(house)
    for command in READERS:
        prefix = house / f"prefix-{command}"
        ended = run(*arguments(command, hostile, prefix=prefix, key=lab.key.path))
        wanted = expected(attack, command)
        assert (ended.code, wanted.words in ended.said) == (wanted.code, True), f"{command}: {ended}, not {wanted}"
        assert "Traceback" not in ended.said
        assert "\x1b" not in ended.said, "the attacker's bytes reach the terminal"
        if command == "install":
            check_prefix(prefix, attack)
        else:
            assert not prefix.exists()
        after = {name: what for name, what in snapshot(house).items() if not name.startswith(f"{house}/prefix-")}
        if command == "sign" and wanted.code == 0:
            check_signed(hostile.path, before, after)
        else:
            assert after == before, f"{command} wrote something"


def check_signed(path: Path, before: Mapping[str, tuple[object, ...]], after: Mapping[str, tuple[object, ...]]) -> None:
    """Require that signing changed the signature slot and nothing else."""
    slot_file = str(path / "manifest.json.sig") if path.is_dir() else str(path)
    assert {name for name in after if after[name] != before.get(name)} <= {slot_file}
    assert after.keys() == before.keys()
    old, new = before[slot_file][3], after[slot_file][3]
    assert isinstance(old, bytes)
    assert isinstance(new, bytes)
    if not path.is_dir() and new:
        start = new.index(b"-----BEGIN SSH SIGNATURE-----\n")
        slot = new[start : start + SIGNATURE_SLOT]
        assert parse_signatures(slot)
        assert old[:start] == new[:start]
        assert old[start + SIGNATURE_SLOT :] == new[start + SIGNATURE_SLOT :]


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_the_same_bundle_without_an_attack(lab: Lab, house: Path, form: str) -> None:
    path = lab.write(lab.good) if form == "tar" else lab.unpacked()
    hostile = Hostile(path=path, trust=lab.key.allowed_signers)
    for command in READERS:
        ended = run(*arguments(command, hostile, prefix=house / "prefix", key=lab.key.path))
        wanted = FITS[command]
        assert (ended.code, wanted.words in ended.said) == (wanted.code, True), f"{command}: {ended}"


@pytest.mark.parametrize("name", REAL)
def test_real_processes(name: str, lab: Lab, house: Path) -> None:
    attack = next(attack for attack in CORPUS if attack.name == name)
    hostile = build(attack, lab)
    before = snapshot(house)
    for command in ("verify", "install", "inspect"):
        program, words = arguments(command, hostile, prefix=house / "prefix", key=lab.key.path)
        done = subprocess.run(
            [sys.executable, "-m", f"{program}.cli", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            check=False,
            timeout=60,
        )
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        wanted = expected(attack, command)
        assert (done.returncode, wanted.words in said) == (wanted.code, True), f"{command}: {said}"
        assert "Traceback" not in said
    after = {path: what for path, what in snapshot(house).items() if not path.startswith(f"{house}/prefix")}
    assert after == before
    check_prefix(house / "prefix", attack)


def test_sign_refuses_what_is_no_manifest(lab: Lab, house: Path) -> None:
    path = lab.signed(b"whatever the attacker wants signed\n")
    hostile = Hostile(path=path, trust=lab.key.allowed_signers)
    before = snapshot(house)
    assert run(*arguments("sign", hostile, prefix=house / "p", key=lab.stranger.path)).code == 5
    assert snapshot(house) == before


def test_the_corpus_is_what_the_issue_asks_for() -> None:
    names = [attack.name for attack in CORPUS]
    assert len(names) >= 80
    assert len(set(names)) == len(names)
    assert len({attack.did for attack in CORPUS if attack.stage is Stage.LAYOUT}) > 40
    assert all(attack.words for attack in CORPUS)
    assert set(CHECKING) <= {command for stage in Stage for command in REFUSING[stage]}
    for attack in CORPUS:
        assert attack.code in {4, 5, 6}
        assert expected(attack, "verify").code or attack.name.startswith(("target-", "delta-leaves-out")), attack.name
        assert expected(attack, "install").code, attack.name


def test_the_threat_model_names_attacks_and_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    table = text.partition("## What is defended")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 30
    names = {attack.name for attack in CORPUS}
    for row in rows:
        cited = re.findall(r"`([^`]+)`", row.rsplit("|", 2)[1])
        assert cited, row
        assert [name for name in cited if name not in names and not (ROOT / name).is_file()] == [], row
