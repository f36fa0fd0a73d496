"""LoRA beside training all weights: the same model, tokens and seed; loss, memory, checkpoint, speed.

`python tests/benchmarks/lora_table.py [MODEL] [--steps 300]`: on a CPU, one thread, some minutes. Steps are timed in
turns, in processes of their own; times are medians of the rounds, ratios medians of the rounds' ratios.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import torch

from tests.benchmarks.turns import interleaved
from trainable.checkpoint.checkpoint import save_checkpoint
from trainable.config import TrialConfig
from trainable.data.corpus import source_files
from trainable.data.tokens import load_corpus
from trainable.device.device_memory import prepare_memory
from trainable.evaluation import EvalProtocol
from trainable.loop import train
from trainable.model.models import load_tokenizer
from trainable.rows import MetricsRow, StepRow
from trainable.run import RunSpec, start_run

FULL = TrialConfig(learning_rate=3e-4)
LORA = replace(FULL, learning_rate=10 * FULL.learning_rate, use_lora=True)
KINDS = {
    "all weights": (FULL, False),
    "LoRA, rank 8": (LORA, False),
    "LoRA, rank 8, all layers": (replace(LORA, lora_targets="all-linear"), False),
    "LoRA, rank 64, all layers": (replace(LORA, lora_targets="all-linear", lora_rank=64, lora_alpha=64), False),
    "all weights, gradient checkpointing": (FULL, True),
    "LoRA, rank 8, gradient checkpointing": (LORA, True),
}


def steps(spec: RunSpec, config: TrialConfig, pause: Callable[[], None]) -> None:
    """Train for ever, pausing after every step."""
    prepare_memory(torch.device("cpu"))
    state = start_run(spec, replace(config, training_steps=10**9))
    for row in train(state, spec.corpus, spec.protocol, eval_steps=()):
        if isinstance(row, StepRow):
            pause()


def trained(spec: RunSpec, config: TrialConfig, folder: Path) -> tuple[float, float, int, int]:
    """Return the first and the last validation loss, the checkpoint's bytes and the number of trained weights."""
    state = start_run(spec, config)
    rows = [row for row in train(state, spec.corpus, spec.protocol, eval_steps=()) if isinstance(row, MetricsRow)]
    path = folder / "step.pt"
    save_checkpoint(state, path, model_name=spec.model_name, corpus_fingerprint=spec.corpus.fingerprint)
    weights = sum(weight.numel() for weight in state.model.parameters() if weight.requires_grad)
    return rows[0].val_loss, rows[-1].val_loss, path.stat().st_size, weights


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = source_files(None)
    corpus = load_corpus(files, load_tokenizer(given.model, files))
    spec = RunSpec(
        model_name=given.model,
        corpus=corpus,
        protocol=EvalProtocol(block_size=128, tokens=16_384),
        device="cpu",
        unigram_entropy=corpus.unigram_entropy,
    )
    specs = {name: replace(spec, gradient_checkpointing=spared) for name, (_, spared) in KINDS.items()}
    loops = {name: partial(steps, specs[name], config) for name, (config, _) in KINDS.items()}
    speed = interleaved(loops, rounds=given.rounds, warm_up_steps=3)
    base = speed["all weights"].step_ms
    print(f"{given.model}, {given.steps} steps of {FULL.batch_size} x {FULL.block_size}, one thread, fp32")
    print("| trained | LR | trained weights | loss from | to | peak MiB | checkpoint MB | ms a step | times |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, _) in KINDS.items():
            run = replace(config, training_steps=given.steps)
            first, last, size_bytes, weights = trained(specs[name], run, Path(folder))
            ratio = statistics.median(a / b for a, b in zip(speed[name].step_ms, base, strict=True))
            print(
                f"| {name} | {config.learning_rate:g} | {weights:,} | {first:.3f} | {last:.3f} "
                f"| {speed[name].peak_memory_mib:.0f} | {size_bytes / 1e6:.2f} "
                f"| {statistics.median(speed[name].step_ms):.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
