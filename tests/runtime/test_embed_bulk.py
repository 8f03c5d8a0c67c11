"""Embedding a file: what is written, what is refused, and that kills leave no trace in the result."""

import hashlib
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from manifests.errors import DiskError, UsageError
from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, Embedder, ModelConfig
from runtime.server.bulk.output import open_output
from runtime.server.bulk.rows import MAX_LINE, BadRow, RawLine, Row, RowFields, parse_line, read_lines
from runtime.server.bulk.sources import JsonlSource, Shard, open_source, require_usable
from tests.factories_bulk import STUB, Lab, embed, end, make_lab, make_prefix, tree, write_texts

TEXT: Final = RowFields(text="text")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / "lab")


def test_killed_at_any_instant_the_same_command_gives_the_same_bytes(lab: Lab, tmp_path: Path) -> None:
    code, words = lab.run(tmp_path / "whole")
    assert code == 0, words
    expected = tree(tmp_path / "whole")
    assert len(expected) == 2 * 23 + 1
    dice, output, kills = random.Random(7), tmp_path / "killed", 0  # noqa: S311 - the same instants in every run
    output.mkdir()
    while not (output / "summary.json").exists():
        process = lab.start(output)
        more = len(list(output.iterdir())) + dice.randrange(1, 12)
        while process.poll() is None and len(list(output.iterdir())) < more:
            pass
        process.kill()
        process.communicate()
        kills += 1
    code, words = lab.run(output)
    assert code == 0, words
    assert tree(output) == expected
    assert kills >= 4


@pytest.mark.parametrize("shards", [1, 5, 22])
def test_killed_after_some_shards_it_does_only_the_others(lab: Lab, tmp_path: Path, shards: int) -> None:
    lab.run(tmp_path / "whole")
    output = tmp_path / "killed"
    process = lab.start(output, processes=1)
    journal = output / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < shards:
        assert process.poll() is None
    process.kill()
    process.communicate()
    if not journal.exists():
        return  # it was through
    done = journal.read_bytes().count(b"\n")
    code, words = lab.run(output)
    assert code == 0, words
    assert done == 23 or f"{23 - done} of 23 shards to do" in words
    assert tree(output) == tree(tmp_path / "whole")


def test_a_journal_line_that_was_torn_and_a_shard_that_is_gone_are_done_again(lab: Lab, tmp_path: Path) -> None:
    """What a power cut may leave, put together from a finished folder."""
    lab.run(tmp_path / "whole")
    output = tmp_path / "torn"
    lab.run(output)
    summary = json.loads((output / "summary.json").read_bytes())
    plan = {"computed": summary["computed"], "request": summary["request"]}
    (output / "plan.json").write_text(json.dumps(plan))
    lines = []
    for number, entry in enumerate(summary["shards"][:6]):
        vectors, ids = output / entry["vectors"], output / entry["ids"]
        tokens = [json.loads(line)["tokens"] for line in ids.read_bytes().splitlines()]
        lines.append(
            {
                "number": number,
                "rows": entry["rows"],
                "tokens": sum(tokens),
                "truncated": entry["truncated"],
                "vectors_size": vectors.stat().st_size,
                "vectors_sha256": entry["vectors_sha256"],
                "ids_size": ids.stat().st_size,
                "ids_sha256": entry["ids_sha256"],
            }
        )
    (output / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines)[:-20])
    (output / "summary.json").unlink()
    (output / "shard-00002.npy").unlink()
    (output / ".shard-00003.npy.1.1.partial").write_bytes(b"half")
    code, words = lab.run(output)
    assert code == 0, words
    assert "19 of 23 shards to do" in words  # five lines are whole, the shard of one is gone
    assert tree(output) == tree(tmp_path / "whole")


def test_a_finished_folder_is_left_as_it_is(lab: Lab, tmp_path: Path) -> None:
    lab.run(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    code, words = lab.run(tmp_path / "out")
    assert (code, "everything was there already" in words) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_input_is_refused_with_what_differs(lab: Lab, tmp_path: Path) -> None:
    lab.run(tmp_path / "out")
    before = tree(tmp_path / "out")
    old = hashlib.sha256(lab.input.read_bytes()).hexdigest()
    write_texts(lab.input, ["one", "two"])
    new = hashlib.sha256(lab.input.read_bytes()).hexdigest()
    code, words = lab.run(tmp_path / "out")
    assert code == 2
    assert f"{tmp_path / 'out'}: begun with another request: 2 problems:" in words
    assert f"input_sha256: {old} there, {new} now" in words
    assert tree(tmp_path / "out") == before


def test_an_input_that_changes_meanwhile_is_noticed(lab: Lab, tmp_path: Path) -> None:
    stub = lab.folder / "stub.py"
    swap = f"Path(sys.argv[1]).write_bytes({b'x' * 4000!r})\n"
    stub.write_text(STUB.replace("for line in", f"{swap}for line in"))
    errors = "from manifests.errors import SealiftError\n"
    body = stub.read_text().replace("    rows = source.rows(shard)\n", _CATCH)
    stub.write_text(errors + body)
    code, words = lab.run(tmp_path / "out", processes=1)
    assert code == 5
    assert f"error: {lab.input}: changed since it was counted, at line 1" in words


_CATCH: Final = """    try:
        rows = source.rows(shard)
    except SealiftError as error:
        print(json.dumps({"error": error.message, "hint": error.hint, "code": error.exit_code}), flush=True)
        break
"""


def test_a_process_that_is_killed_is_named_and_what_is_done_is_kept(lab: Lab, tmp_path: Path) -> None:
    stub = lab.folder / "stub.py"
    die = "    if shard.number == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
    stub.write_text(STUB.replace("    rows = source", f"{die}    rows = source"))
    code, words = lab.run(tmp_path / "out", processes=1)
    assert code == 9
    assert "was killed by signal 9\nhint: what is done is kept: run the same command again" in words
    stub.write_text(STUB)
    code, words = lab.run(tmp_path / "out", processes=1)
    assert (code, "16 of 23 shards to do" in words) == (0, True)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError) as caught, open_output(tmp_path):
        pass
    assert caught.value.message == f"{tmp_path}: not empty and not begun by runtime embed: notes.txt"


def test_two_runs_in_one_folder_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.server.bulk.output._WAIT", 0.1)
    with open_output(tmp_path / "out"), pytest.raises(DiskError) as caught, open_output(tmp_path / "out"):
        pass
    assert caught.value.message == f"{tmp_path / 'out'}: another runtime embed works there"


def test_a_plan_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(UsageError) as caught, open_output(tmp_path):
        pass
    assert caught.value.message == f"{tmp_path / 'plan.json'}: not written by runtime embed"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b'"text"', "expected an object, got text"),
        (b'{"t": "x", "a": 1}', "no field 'text' (fields there: a, t)"),
        (b"{}", "no field 'text' (fields there: none)"),
        (b'{"text": 5}', "field 'text': expected text, got a number"),
        (b'{"text": null}', "field 'text': expected text, got null"),
        (b'{"text": "\xff"}', "not UTF-8: byte 10"),
        (b'{"text": "ab\\ud800"}', "field 'text': a lone surrogate at character 2"),
    ],
)
def test_a_bad_line_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_line(RawLine(line=1, data=data), TEXT)
    assert str(caught.value) == reason


def test_ids_are_texts_or_whole_numbers() -> None:
    fields = RowFields(text="text", id="key")
    assert parse_line(RawLine(line=3, data=b'{"text": "a", "key": 7}'), fields) == Row(line=3, text="a", id=7)
    assert parse_line(RawLine(line=3, data=b" \r\n"), fields) is None
    for value, kind in (("true", "a truth value"), ("1.5", "a number"), ("[]", "a list")):
        with pytest.raises(BadRow) as caught:
            parse_line(RawLine(line=3, data=f'{{"text": "a", "key": {value}}}'.encode()), fields)
        assert str(caught.value) == f"field 'key': expected text or a whole number, got {kind}"


def test_a_line_that_is_too_long_is_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "' + b"x" * (2 * MAX_LINE) + b'"}\n{"text": "b"}\n')
    source = JsonlSource(path, TEXT)
    scan = source.scan(10)
    assert [(bad.line, bad.reason) for bad in scan.bad] == [(2, "longer than 16 MiB")]
    assert [(row.line, row.text) for row in source.rows(scan.shards[0])] == [(1, "a"), (3, "b")]


def test_lines_are_numbered_as_an_editor_does() -> None:
    found = [(raw.line, raw.data) for raw in read_lines(io.BytesIO(b"a\n\nb"))]
    assert found == [(1, b"a\n"), (2, b"\n"), (3, b"b")]


def test_shards_hold_every_text_once_whatever_lies_between(tmp_path: Path) -> None:
    lines = [b'{"text": "%d"}' % n if n % 3 else (b"", b"{bad")[n % 2] for n in range(1, 50)]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    source = JsonlSource(path, TEXT)
    scan = source.scan(4)
    expected = [(n, str(n)) for n in range(1, 50) if n % 3]
    assert [len(source.rows(shard)) for shard in scan.shards] == [4] * 8 + [1]
    assert [shard.rows for shard in scan.shards] == [4] * 8 + [1]
    assert [(row.line, row.text) for shard in scan.shards for row in source.rows(shard)] == expected
    assert (scan.sha256, scan.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert Shard.from_json(json.loads(json.dumps(scan.shards[3].to_json()))) == scan.shards[3]


def test_an_input_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "in.jsonl"
    bad.write_bytes(b'{"text": "a"}\nx\n{"text": 1}\n')
    scan = JsonlSource(bad, TEXT).scan(10)
    with pytest.raises(UsageError) as caught:
        require_usable(scan, bad, skip_bad=False)
    assert caught.value.message == (
        f"{bad}: 2 problems:\n  line 2: not JSON: Expecting value: line 1 column 1 (char 0)\n"
        "  line 3: field 'text': expected text, got a number"
    )
    assert caught.value.hint == "correct them, or leave them out with --skip-bad: they are listed in skipped.jsonl"
    require_usable(scan, bad, skip_bad=True)
    bad.write_bytes(b"\n")
    with pytest.raises(UsageError, match="there are no texts in it"):
        require_usable(JsonlSource(bad, TEXT).scan(10), bad, skip_bad=True)
    for name, words in (("in.csv", "expected .jsonl, .ndjson or .parquet, got '.csv'"), ("no.jsonl", "no such file")):
        (tmp_path / "in.csv").touch()
        with pytest.raises(UsageError) as caught:
            open_source(tmp_path / name, TEXT)
        assert caught.value.message == f"{tmp_path / name}: {words}"


def test_parquet_without_pyarrow_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "in.parquet"
    path.touch()
    with pytest.raises(UsageError) as caught:
        open_source(path, TEXT)
    assert caught.value.message == f"{path}: this release has no pyarrow, which reads Parquet"
    assert 'add "pyarrow" to [packages] requirements' in str(caught.value.hint)


def test_parquet_gives_the_rows_of_its_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    texts = [None if n == 5 else f"t{n}" for n in range(50)]
    parquet.write_table(arrow.table({"text": texts, "key": list(range(50))}), path, row_group_size=7)
    source = open_source(path, RowFields(text="text", id="key"))
    scan = source.scan(8)
    assert [(bad.line, bad.reason) for bad in scan.bad] == [(6, "field 'text': expected text, got null")]
    rows = [row for shard in scan.shards for row in source.rows(shard)]
    assert [(row.line, row.text, row.id) for row in rows] == [(n + 1, f"t{n}", n) for n in range(50) if n != 5]
    with pytest.raises(UsageError, match=r"no column 'body' \(columns there: text, key\)"):
        open_source(path, RowFields(text="body"))


# With a real model, by the commands that an operator types.


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prefix(tmp_path_factory.mktemp("prefix"))


def tiny(prefix: Path) -> Embedder:
    folder = prefix / "current" / "models" / "mini"
    settings: dict[str, JSON] = {"device": "cpu", "enable_cache": False}
    adapter = load_adapter(
        ModelConfig(name="mini", adapter="sentence-transformer", directory=folder, settings=settings)
    )
    assert isinstance(adapter, Embedder)
    return adapter


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    words = ["ship", "sealed goods", "", "서울", *(f"the cat number {n} sleeps" for n in range(40)), "dog " * 100]
    return write_texts(tmp_path / "in.jsonl", words)


def shards_of(output: Path) -> Iterator[tuple[dict[str, Any], Any, list[dict[str, Any]]]]:
    for entry in json.loads((output / "summary.json").read_bytes())["shards"]:
        vectors = (output / entry["vectors"]).read_bytes()
        ids = (output / entry["ids"]).read_bytes()
        assert hashlib.sha256(vectors).hexdigest() == entry["vectors_sha256"]
        assert hashlib.sha256(ids).hexdigest() == entry["ids_sha256"]
        yield entry, np.load(io.BytesIO(vectors)), [json.loads(line) for line in ids.splitlines()]


@pytest.mark.models
@pytest.mark.slow
def test_the_vectors_are_the_models_own(prefix: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--shard-rows", "16", "--threads", "1", "--id-field", "id")
    code, words = end(embed(prefix, texts, output, *options))
    assert code == 0, words
    assert f"45 texts in 3 shards, 32 numbers each, 1 truncated to 48 tokens, 0 lines skipped: {output}" in words
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    embedder, number = tiny(prefix), 0
    for entry, vectors, ids in shards_of(output):
        expected = embedder.embed(lines[number : number + 16])
        assert (vectors.dtype, vectors.shape) == (np.dtype("<f4"), (entry["rows"], 32))
        assert float(np.abs(vectors - expected.vectors).max()) < 1e-6
        assert [(one["line"], one["id"]) for one in ids] == [
            (number + n + 1, f"t{number + n}") for n in range(len(ids))
        ]
        assert [one["tokens"] for one in ids] == list(expected.token_counts)
        assert [one["truncated"] for one in ids] == list(expected.truncated)
        number += len(ids)
    assert number == 45


@pytest.mark.models
def test_bad_lines_are_named_and_left_out_when_asked(prefix: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"text": "ship"}\nnonsense\n{"text": "sun"}\n')
    code, words = end(embed(prefix, source, output))
    assert code == 2
    assert "1 problem:\n  line 2: not JSON" in words
    assert list(output.iterdir()) == []
    code, words = end(embed(prefix, source, output, "--skip-bad", "--json", "--model", "mini"))
    assert code == 0, words
    summary = json.loads(words[words.index("{") :])
    assert (summary["texts"], summary["skipped"], summary["request"]["model"]) == (2, 1, "mini")
    assert summary == json.loads((output / "summary.json").read_bytes())
    skipped = json.loads((output / "skipped.jsonl").read_bytes())
    assert skipped == {"line": 2, "reason": "not JSON: Expecting value: line 1 column 1 (char 0)"}
    assert [[one["line"] for one in ids] for _, _, ids in shards_of(output)] == [[1, 3]]


@pytest.mark.models
def test_what_can_not_embed_is_refused(prefix: Path, texts: Path, tmp_path: Path) -> None:
    code, words = end(embed(prefix, texts, tmp_path / "out", "--model", "chat"))
    assert code == 2
    assert "error: model 'chat' generates text, it gives no vectors\nhint: --model NAME" in words
    code, words = end(embed(prefix, texts, tmp_path / "out", "--model", "minni"))
    assert (code, "the release has no model 'minni'" in words) == (2, True)
    code, words = end(embed(prefix, tmp_path / "none.jsonl", tmp_path / "out"))
    assert (code, f"{tmp_path / 'none.jsonl'}: no such file" in words) == (2, True)
    code, words = end(embed(tmp_path / "empty", texts, tmp_path / "out"))
    assert (code, "nothing is installed here" in words) == (2, True)
