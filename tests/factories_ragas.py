"""A language model that says one sentence, so that ragas has an answer it can parse; and a run without network."""

import os
import subprocess
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bundler.rehearsal.sandbox import find_isolation
from tests.factories_langchain import ROOT, Environment
from tests.factories_models import make_llama, write_json


def make_parrot(directory: Path, answer: str) -> Path:
    """Write a Llama that answers every conversation with ``answer`` and then ends its turn; context 32,768.

    ``answer`` is one token of its vocabulary. Attention and MLP add nothing; each token's vector points to what follows
    it: after ``answer`` the end of the turn, after anything else ``answer``.
    """
    make_llama(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokenizer.add_tokens([answer])
    tokenizer.model_max_length = 32768
    tokenizer.save_pretrained(directory)
    said, end = tokenizer.convert_tokens_to_ids([answer, "<|im_end|>"])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=32768,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            architectures=["LlamaForCausalLM"],
            **sizes,
        )
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        network.model.embed_tokens.weight[:, 0] = 1.0
        network.model.embed_tokens.weight[said] = torch.eye(8)[1]
        network.lm_head.weight[said, 0] = network.lm_head.weight[end, 1] = 50.0
    network.save_pretrained(directory)
    return directory


def run_offline(environment: Environment, *words: str | Path, home: Path) -> None:
    """Run ``python WORDS...`` in a namespace without network and with an empty home; fails with its last lines."""
    isolation = find_isolation()
    assert isolation.is_namespace, isolation.name
    kept = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "RAGAS_DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [*isolation.prefix, environment.python, *words], env=kept, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def write_report(path: Path, report: object) -> None:
    """Write what a contract found."""
    write_json(path, report)
