"""Bulk embedding with a real model: processes, SIGKILL and SIGTERM change no byte of what is written."""

import signal
from pathlib import Path

import pytest

from tests.factories_bulk import embed, end, make_prefix, tree, write_texts


@pytest.mark.models
@pytest.mark.slow
def test_processes_and_kills_change_no_byte(tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "prefix")
    texts = write_texts(
        tmp_path / "in.jsonl", [f"the quick fox number {n} jumps over the lazy dog" for n in range(600)]
    )
    options = ("--shard-rows", "6", "--threads", "1")
    code, words = end(embed(prefix, texts, tmp_path / "one", *options))
    assert code == 0, words
    output, journal = tmp_path / "killed", tmp_path / "killed" / "journal.jsonl"
    process = embed(prefix, texts, output, *options, "--processes", "2")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert not (output / "summary.json").exists()
    process = embed(prefix, texts, output, *options)
    lines = journal.read_bytes().count(b"\n")
    while journal.exists() and journal.read_bytes().count(b"\n") <= lines:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, words = end(process)
    assert code == 130
    assert "stopped: what is done is kept; run the same command again to go on" in words
    code, words = end(embed(prefix, texts, output, *options))
    assert code == 0, words
    assert tree(output) == tree(tmp_path / "one")
