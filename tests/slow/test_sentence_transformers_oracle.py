"""The numbers of the sentence-transformer adapter are that library's own, for every form of folder that it takes."""

import json
import shutil
from pathlib import Path

import pytest

from tests.factories_langchain import flagembedding_venv
from tests.factories_models import make_bert, make_xlmr, write_dense, write_json, write_modules

pytestmark = [pytest.mark.slow, pytest.mark.models]


def test_numbers_are_the_librarys(tmp_path: Path) -> None:
    base, report = make_bert(tmp_path / "mean"), tmp_path / "report.json"
    folders = [base, make_xlmr(tmp_path / "xlmr")]
    for pooling in ("cls", "max"):
        folders.append(shutil.copytree(base, tmp_path / pooling))
        write_modules(folders[-1], pooling=pooling, normalize=False, max_seq_length=20)
    folders.append(shutil.copytree(base, tmp_path / "root"))
    write_json(
        folders[-1] / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, "pooling_mode": "mean_sqrt_len_tokens"},
    )
    folders.append(shutil.copytree(base, tmp_path / "dense"))
    write_modules(folders[-1], pooling="mean", normalize=False)
    for name, rows, columns, activation in (
        ("2_Dense", 8, 32, "torch.nn.modules.activation.Tanh"),
        ("3_Dense", 5, 8, "torch.nn.modules.linear.Identity"),
    ):
        write_dense(folders[-1], name, rows=rows, columns=columns, activation=activation, normalize=rows == 5)
    folders.append(shutil.copytree(base, tmp_path / "documents"))
    write_json(folders[-1] / "config_sentence_transformers.json", {"prompts": {"query": "fox ", "document": "a ship "}})
    folders.append(shutil.copytree(base, tmp_path / "prompts"))
    prompts = {"query": "the cat ", "passage": "a ship ", "other": "fox "}
    write_json(folders[-1] / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "other"})
    flagembedding_venv().run("-m", "tests.oracle_sentence_transformers", report, *folders)
    found = json.loads(report.read_text(encoding="utf-8"))
    worst = {Path(name).name: parts for name, parts in found.items() if max(parts.values()) > 1e-5}
    assert worst == {}
    assert len(found) == 8
