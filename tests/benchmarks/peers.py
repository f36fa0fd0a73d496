"""What people would train with instead, each as a function that trains for ever and pauses between two steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from trainable.config import DOCUMENTED, TrialConfig
from trainable.data.tokens import Corpus, Tokens
from trainable.device.compiling import CompileMode
from trainable.evaluation import EvalProtocol
from trainable.model.model_names import PRESETS

Pause = Callable[[], None]
CORPUS_TOKENS = 400_000
LEARNING_RATE, WEIGHT_DECAY, DROPOUT, CLIP_NORM = 1e-4, 0.01, 0.1, 1.0
LLAMA_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's."""
WIDE_HEAD = {"vocab_size": 50_257, "n_positions": 1024, "n_embd": 256, "n_layer": 4, "n_head": 4}
"""A small model with GPT-2's vocabulary: most of its step is the head."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One like-for-like comparison."""

    model_name: str
    batch_size: int
    block_size: int
    precision: str
    device: str

    @property
    def words(self) -> str:
        """The case in a line."""
        return f"{self.model_name}, {self.batch_size} x {self.block_size}, {self.precision}"

    @property
    def shape(self) -> dict[str, int]:
        """GPT-2's fields of the model."""
        return WIDE_HEAD if self.model_name == "wide-head" else dict(PRESETS[self.model_name])

    @property
    def model_config(self) -> PreTrainedConfig:
        """The model as transformers describes it, dropout included."""
        if self.model_name == "llama-135m":
            return LlamaConfig(**LLAMA_135M, attention_dropout=DROPOUT)
        return GPT2Config(**self.shape, resid_pdrop=DROPOUT, embd_pdrop=DROPOUT, attn_pdrop=DROPOUT)


def write_corpus(folder: Path, vocab_size: int) -> Corpus:
    """Return a corpus of random tokens: what the tokens are makes no difference to the speed."""
    path = folder / f"tokens-{vocab_size}.npy"
    np.save(path, np.random.default_rng(0).integers(0, vocab_size, CORPUS_TOKENS, dtype=np.uint16))
    return Corpus(path=path, fingerprint=f"{vocab_size}", vocab_size=vocab_size)


def ours(case: Case, corpus: Corpus, pause: Pause, *, compile_mode: CompileMode = "auto") -> None:
    """Train by trainable.loop."""
    from trainable.device.device_memory import prepare_memory
    from trainable.loop import train
    from trainable.rows import StepRow
    from trainable.run import RunSpec, start_run

    prepare_memory(torch.device(case.device))
    model_name = case.model_name
    if model_name not in PRESETS:
        model_name = str(corpus.path.parent / model_name)
        hf_model(case).save_pretrained(model_name)
    spec = RunSpec(
        model_name=model_name,
        corpus=corpus,
        protocol=EvalProtocol(block_size=case.block_size, tokens=case.block_size),
        device=case.device,
        unigram_entropy=0.0,
        compile_mode=compile_mode,
    )
    for row in train(start_run(spec, config_of(case)), corpus, spec.protocol, eval_steps=(), stop_on=()):
        if isinstance(row, StepRow):
            pause()


def ours_up_to(case: Case, corpus: Corpus, rung: int, pause: Pause) -> None:
    """Train by trainable.loop with only the first `rung` of the CPU's tricks in the model."""
    from trainable.device.cpu_kernels import attention
    from trainable.device.cpu_kernels.dropout import replace_dropout
    from trainable.device.cpu_kernels.linear import replace_linear
    from trainable.model import models

    tricks = (replace_dropout, attention.use_in, replace_linear)[:rung]
    with patch.object(models, "tune_for_cpu", lambda model: [trick(model) for trick in tricks]):
        ours(case, corpus, pause, compile_mode="off")


def config_of(case: Case) -> TrialConfig:
    """Return the case as our hyperparameters."""
    return replace(
        DOCUMENTED,
        batch_size=case.batch_size,
        block_size=case.block_size,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        dropout=DROPOUT,
        grad_clip_norm=CLIP_NORM,
        precision=case.precision,
        training_steps=10**9,
    )


def hf_model(case: Case) -> PreTrainedModel:
    """Return the model as transformers makes it, with random weights."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(case.model_config).to(case.device)
    return model


def trainer(case: Case, corpus: Corpus, pause: Pause) -> None:
    """Train by transformers.Trainer with its own defaults."""
    from tempfile import TemporaryDirectory

    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    tokens, block = corpus.train, case.block_size

    class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(tokens) - block

        def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(tokens[at : at + block].astype(np.int64))
            return {"input_ids": ids, "labels": ids}

    class Turn(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            pause()

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=case.batch_size,
            max_steps=10**9,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP_NORM,
            lr_scheduler_type="constant",
            bf16=case.precision == "bf16",
            use_cpu=case.device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=hf_model(case), args=arguments, train_dataset=Windows(), callbacks=[Turn()]).train()


def naive(case: Case, corpus: Corpus, pause: Pause) -> None:
    """Train as a first script would: the model's own loss, AdamW, an item() a step."""
    model = hf_model(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    while True:
        ids = stacked(corpus.train, case.batch_size, case.block_size).to(case.device)
        with torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        loss.item()
        pause()


def liger(case: Case, corpus: Corpus, pause: Pause) -> None:
    """Train the naive loop with liger-kernel's head and loss in one, which never holds all logits."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    model, head_loss = hf_model(case), LigerFusedLinearCrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    while True:
        ids = stacked(corpus.train, case.batch_size, case.block_size + 1).to(case.device)
        with torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.precision == "bf16"):
            hidden = model.transformer(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            loss = head_loss(model.lm_head.weight, hidden.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        pause()


def nano(case: Case, corpus: Corpus, pause: Pause) -> None:
    """Train in nanoGPT's style: its own small model, SDPA with dropout, whole logits, AdamW fused on CUDA."""
    torch.manual_seed(0)
    model = NanoGPT(case).to(case.device)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=case.device == "cuda")
    run: Any = torch.compile(model) if case.device == "cuda" else model
    while True:
        ids = stacked(corpus.train, case.batch_size, case.block_size + 1).to(case.device)
        with torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.precision == "bf16"):
            logits = run(ids[:, :-1])
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), ids[:, 1:].reshape(-1))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pause()


def stacked(tokens: Tokens, batch_size: int, length: int) -> torch.Tensor:
    """Return random windows (batch_size, length), stacked one by one as most scripts do."""
    starts = torch.randint(len(tokens) - length, (batch_size,)).tolist()
    return torch.stack([torch.from_numpy(tokens[at : at + length].astype(np.int64)) for at in starts])


class NanoGPT(nn.Module):
    """A pre-norm GPT-2 in two screens."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        shape = case.shape
        width, vocab = shape["n_embd"], shape["vocab_size"]
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(shape["n_positions"], width)
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(NanoBlock(width, shape["n_head"]) for _ in range(shape["n_layer"]))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 1 / math.sqrt(2 * shape["n_layer"]) if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits (B, T, V) of ids (B, T)."""
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(ids.size(1), device=ids.device)))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


class NanoBlock(nn.Module):
    """Attention and MLP, each around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attn_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu, self.drop = nn.GELU(), nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, T, C) after the block."""
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(c, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=DROPOUT if self.training else 0.0, is_causal=True)
        x = x + self.drop(self.attn_out(y.transpose(1, 2).reshape(b, t, c)))
        after: torch.Tensor = x + self.drop(self.mlp_out(self.gelu(self.up(self.norm2(x)))))
        return after
