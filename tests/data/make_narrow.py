"""Pretrain the model of the tests' searches, a twelfth of the shipped one's size, and write it beside this file.

python -m tests.data.make_narrow
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.benchmarks import pretrain
from tests.narrow import NARROW
from tests.stdlib_text import docstrings
from trainable.data.tokens import load_corpus
from trainable.evaluation import EvalProtocol
from trainable.model.model_names import SHIPPED

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 2048, "n_positions": 256}
CONFIG = replace(
    pretrain.CONFIG, batch_size=32, block_size=64, learning_rate=1e-2, warmup_steps=50, training_steps=1000
)


def main() -> None:
    """Train and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CACHE_DIR"] = scratch
        text, begun = Path(scratch) / "docstrings.txt", Path(scratch) / "begun"
        text.write_text(docstrings(), encoding="utf-8")
        GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0)).save_pretrained(begun)
        tokenizer = AutoTokenizer.from_pretrained(SHIPPED["tiny"])
        tokenizer.save_pretrained(begun)
        corpus = load_corpus([text], tokenizer.backend_tokenizer)
        model = pretrain.trained(str(begun), corpus, CONFIG, EvalProtocol(block_size=64, tokens=8192))
        NARROW.mkdir(exist_ok=True)
        (NARROW / "config.json").write_bytes((begun / "config.json").read_bytes())
        tied = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        save_file(tied, NARROW / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
