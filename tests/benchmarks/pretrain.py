"""Pretrain the model that ships as `tiny` on the docstrings of Python's standard library, and write its folder.

python tests/benchmarks/pretrain.py [FOLDER]
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from tests.stdlib_text import docstrings
from trainable.config import TrialConfig
from trainable.data.corpus import language_reference
from trainable.data.tokens import Corpus, load_corpus, train_tokenizer
from trainable.device.device_memory import prepare_memory
from trainable.evaluation import EvalProtocol, eval_windows, evaluate
from trainable.loop import train
from trainable.model.fingerprint import file_fingerprint
from trainable.model.model_names import PRESETS, SHIPPED
from trainable.preflight.corpus_checks import measure_overlap
from trainable.rows import MetricsRow, Verdict
from trainable.run import RunSpec, start_run

SHAPE = "tiny-scratch"
SHOW_STEPS = 100
PROTOCOL = EvalProtocol(block_size=128, tokens=8192)
CONFIG = TrialConfig(
    batch_size=16,
    block_size=128,
    learning_rate=2e-3,
    lr_schedule="warmup_cosine",
    warmup_steps=75,
    training_steps=1500,
    dropout=0.0,
    precision="fp32",
    seed=0,
)

README = """# tiny

A GPT-2 of 4 layers and 128 dimensions (1.2 million parameters, vocabulary 2048), pretrained on English of one kind:
the docstrings of Python's standard library. A search fine-tunes it on the language reference, of which no 32 tokens
in a row are among the docstrings. It is for demonstrations and tests: it writes no sense.

- command: `python tests/benchmarks/pretrain.py`
- data: `tests.stdlib_text.docstrings()` of Python {python}, {mb:.2f} MB, {tokens:,} tokens,
  SHA-256 `{fingerprint}`; the last tenth held out
- training: {steps:,} steps of {batch} x {block} tokens, {schedule} after {warmup} warm-up steps, learning rate {lr:g},
  dropout {dropout:g}, AdamW, {precision}, seed {seed}, torch {torch}, {minutes:.0f} minutes of CPU time
- loss, nats/token: {val:.3f} on held-out docstrings; {reference:.3f} on the held-out language reference
- weights: rounded to fp16 once, in the file; they are loaded into fp32, which holds each of them exactly
"""


def main(folder: Path) -> None:
    """Train and write."""
    prepare_memory(torch.device("cpu"))
    # Bit for bit the same weights on the same machine.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        texts = {"docstrings": docstrings(), "reference": language_reference()}
        files = {name: Path(scratch) / f"{name}.txt" for name in texts}
        for name, text in texts.items():
            files[name].write_text(text, encoding="utf-8")
        tokenizer = train_tokenizer([files["docstrings"]], PRESETS[SHAPE]["vocab_size"])
        corpora = {name: load_corpus([file], tokenizer) for name, file in files.items()}
        overlap = measure_overlap(corpora["docstrings"].tokens, corpora["reference"].tokens)
        assert overlap is not None
        assert overlap.longest_tokens == 0, overlap
        started = time.process_time()
        model = trained(SHAPE, corpora["docstrings"], CONFIG, PROTOCOL)
        minutes = (time.process_time() - started) / 60
        save(model, tokenizer, folder)
        losses = {name: loss_of(folder, corpus) for name, corpus in corpora.items()}
        note = README.format(
            python=platform.python_version(),
            mb=files["docstrings"].stat().st_size / 1e6,
            tokens=len(corpora["docstrings"].tokens),
            fingerprint=file_fingerprint(files["docstrings"])[:16],
            steps=CONFIG.training_steps,
            batch=CONFIG.batch_size,
            block=CONFIG.block_size,
            schedule=CONFIG.lr_schedule.removeprefix("warmup_"),
            warmup=CONFIG.warmup_steps,
            lr=CONFIG.learning_rate,
            dropout=CONFIG.dropout,
            precision=CONFIG.precision,
            seed=CONFIG.seed,
            torch=torch.__version__,
            minutes=minutes,
            val=losses["docstrings"],
            reference=losses["reference"],
        )
        (folder / "README.md").write_text(note, encoding="utf-8")
        print(note)


def trained(model_name: str, corpus: Corpus, config: TrialConfig, protocol: EvalProtocol) -> PreTrainedModel:
    """Return the model after the last step."""
    spec = RunSpec(
        model_name=model_name, corpus=corpus, protocol=protocol, device="cpu", unigram_entropy=corpus.unigram_entropy
    )
    state = start_run(spec, config)
    shown = range(SHOW_STEPS, config.training_steps, SHOW_STEPS)
    for row in train(state, corpus, protocol, eval_steps=shown):
        if isinstance(row, MetricsRow):
            print(f"step {row.optimizer_steps}: {row.val_loss:.3f}, {row.active_s:.0f} s", flush=True)
        assert not isinstance(row, Verdict), row
    return state.model


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder; the loader's own activation and dropout are not part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    end = "<|endoftext|>"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=end, unk_token=end, model_max_length=1024
    )
    wrapped.save_pretrained(folder)
    model.config.update({"activation_function": "gelu_new", "bos_token_id": 0, "eos_token_id": 0})
    for field in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, field, 0.1)
    model.generation_config.update(bos_token_id=0, eos_token_id=0)
    model.save_pretrained(folder)
    assert isinstance(model, GPT2LMHeadModel)
    # config.json keeps saying float32: whoever loads the folder computes in it.
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        halves = {name: file.get_tensor(name).half() for name in file.keys()}  # noqa: SIM118
    save_file(halves, weights, metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def loss_of(folder: Path, corpus: Corpus) -> float:
    """Return the saved model's loss on the held-out tail."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    return evaluate(model, eval_windows(corpus.val, PROTOCOL))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED["tiny"])
