"""Runs to plant: what befell each, as rows; and the finding that must come first, None for a healthy one."""

import math
import random
from dataclasses import dataclass, replace

from tests.results.logs.formats import Row, Run, decimals


@dataclass(frozen=True, kw_only=True)
class Planted:
    run: Run
    first: str | None
    says: str = ""
    """Words that the first finding must hold."""
    only: tuple[str, ...] = ()
    """Formats in which it makes sense; () for all."""
    not_in: tuple[str, ...] = ()


def rate_at(step: int, total: int, peak: float, warmup: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def course(
    start: float,
    end: float,
    *,
    total: int = 2000,
    every: int = 50,
    eval_every: int = 200,
    peak: float = 2e-5,
    noise: float = 0.02,
    gap: float = 0.08,
    first: int = 0,
    header: str = "",
    fast: float = 7.0,
) -> Run:
    """A healthy run: an exponential fall, a cosine rate after warm-up, evaluations less often than logged losses."""
    gauss = random.Random(7).gauss
    rows = []
    for step in range(first, total + 1, every):
        level = end + (start - end) * math.exp(-fast * (step - first) / total)
        rows.append(
            Row(
                step=step,
                train=decimals(level + gauss(0, noise)),
                val=decimals(level + gap + gauss(0, noise / 3)) if step % eval_every == 0 else None,
                rate=float(f"{rate_at(step, total, peak, total // 20):.4g}"),
                norm=round(abs(gauss(1, 0.1)), 4),
            )
        )
    return Run(rows=rows, total_steps=total, header=header)


def changed(run: Run, change: object) -> Run:
    assert callable(change)
    return replace(run, rows=[change(row) for row in run.rows])


def plus(row: Row, rise: float) -> Row:
    return replace(
        row,
        train=None if row.train is None else decimals(row.train + rise),
        val=None if row.val is None else decimals(row.val + rise),
    )


FINE = course(3.9, 3.2)
SCRATCH = course(10.9, 3.9, total=10_000, every=100, eval_every=1000, peak=6e-4)
_TUNED = ("mlx-lm", "axolotl", "unsloth")
_GPT2 = "Loading pretrained gpt2"
_DICTS = ("Trainer console", "axolotl", "unsloth")
"""These print no loss before the first step."""
_CONSOLES = ("nanoGPT", "Trainer console")
_WITH_NORMS = ("Trainer console", "trainer_state.json", "TensorBoard events", "axolotl")


def _overfits(row: Row, *, turn: int, down: float, up: float) -> Row:
    past = max(0, row.step - turn)
    assert row.train is not None
    return replace(
        row,
        train=decimals(row.train - down * past / (2000 - turn)),
        val=None if row.val is None else decimals(row.val + up * past / (2000 - turn)),
    )


PLANTED: dict[str, Planted] = {
    # ---- healthy
    "healthy fine-tune": Planted(run=FINE, first=None),
    "healthy from scratch": Planted(run=SCRATCH, first=None, not_in=_TUNED),
    "healthy, first row a mean over 100 steps of a run from scratch": Planted(
        run=replace(SCRATCH, rows=[plus(row, 0.0) for row in SCRATCH.rows[1:]]), first=None, not_in=_TUNED
    ),
    "healthy, a vocabulary of 8,192 from scratch": Planted(run=course(9.05, 3.4, peak=1e-3), first=None, not_in=_TUNED),
    "healthy, characters": Planted(run=course(4.2, 1.5, peak=1e-3, noise=0.01), first=None, not_in=_TUNED),
    "healthy LoRA at 2e-4": Planted(run=course(2.1, 1.4, total=600, every=10, eval_every=100, peak=2e-4), first=None),
    "healthy LoRA at 1e-3, hard batches": Planted(
        run=course(1.9, 1.2, total=300, every=5, eval_every=100, peak=1e-3, noise=0.12), first=None
    ),
    "healthy, a constant rate that nobody announced": Planted(
        run=changed(FINE, lambda row: replace(row, rate=2e-5)), first=None
    ),
    "healthy, short": Planted(run=course(3.6, 3.3, total=60, every=10, eval_every=30), first=None),
    "healthy, little to learn": Planted(run=course(3.35, 3.3), first=None),
    "healthy, evaluated once": Planted(run=course(3.9, 3.4, eval_every=2000), first=None),
    "healthy, last evaluation before the last step": Planted(
        run=replace(course(3.9, 3.2, total=1900, every=100), total_steps=2000), first=None
    ),
    "healthy, every step logged, the last batch hard": Planted(
        run=changed(
            course(2.9, 2.5, total=600, every=1, eval_every=100, noise=0.08),
            lambda row: replace(row, train=4.0) if row.step in (300, 600) else row,
        ),
        first=None,
        only=("Trainer console", "trainer_state.json"),
    ),
    "healthy, an inverse square root from step 5 on, logged from step 100": Planted(
        run=changed(
            replace(course(3.9, 3.2, every=100, first=100), header="learning_rate: 2e-5"),
            lambda row: replace(row, rate=2e-5 * (20 / row.step) ** 0.5),
        ),
        first=None,
        only=_CONSOLES,
    ),
    "healthy, gradient norms with a long tail": Planted(
        run=changed(
            course(3.9, 3.2, total=1500, every=1, eval_every=300),
            lambda row: replace(row, norm=(row.norm or 1.0) * (6.0 if row.step % 61 == 60 else 1.0)),
        ),
        first=None,
        only=("Trainer console", "trainer_state.json"),
    ),
    # ---- low or hot, and right
    "healthy, text from one template": Planted(run=course(2.8, 0.19, noise=0.01, gap=0.01), first=None),
    "healthy, answers alone are scored": Planted(run=course(1.9, 0.09, noise=0.01, gap=0.01, peak=2e-4), first=None),
    "healthy, bytes of easy stories": Planted(
        run=course(5.57, 0.45, total=20_000, every=200, eval_every=1000, peak=1e-3, noise=0.01, gap=0.01),
        first=None,
        not_in=_TUNED,
    ),
    "healthy, numbers added": Planted(
        run=course(2.64, 0.002, noise=0.0, gap=0.0004, peak=1e-3, header="vocab_size: 14"), first=None, only=_CONSOLES
    ),
    "healthy, Muon at 0.02": Planted(
        run=course(10.85, 3.4, total=4500, every=50, eval_every=250, peak=0.02), first=None, not_in=_TUNED
    ),
    "healthy, plain SGD at 20": Planted(
        run=changed(course(7.2, 4.9, total=30_000, every=500, eval_every=3000), lambda row: replace(row, rate=20.0)),
        first=None,
        not_in=_TUNED,
    ),
    # ---- the lowest loss
    "labels not shifted, random weights": Planted(
        run=course(6.9, 0.45, total=400, every=10, eval_every=100, peak=1e-3, gap=-0.1),
        first="loss_too_low",
        says="shifted",
    ),
    "labels not shifted, pretrained weights": Planted(
        run=course(9.5, 0.004, total=600, every=10, eval_every=100, noise=0.0, gap=0.001, fast=40),
        first="loss_too_low",
        says="shifted",
    ),
    "characters that are seen before they are predicted": Planted(
        run=course(4.2, 0.04, noise=0.003, gap=0.002, peak=1e-3), first="loss_too_low", says="causal"
    ),
    "labels not shifted, no evaluation": Planted(
        run=changed(course(10.9, 0.05, noise=0.003, peak=3e-4), lambda row: replace(row, val=None)),
        first="loss_too_low",
        not_in=("nanoGPT",),
    ),
    "characters not shifted, no evaluation": Planted(
        run=changed(
            course(4.19, 0.001, noise=0.0, peak=1e-3, fast=20, header="vocab_size = 65"),
            lambda row: replace(row, val=None),
        ),
        first="loss_too_low",
        only=("Trainer console",),
    ),
    "labels not shifted, 0.0 in four decimals": Planted(
        run=course(10.9, 0.0, noise=0.0, gap=0.00009, fast=40), first="loss_too_low", not_in=("mlx-lm",)
    ),
    # ---- ruined by the rate
    "ruined before the first row": Planted(
        run=course(7.6, 6.7, total=400, every=10, eval_every=100, first=10, peak=0.03, noise=0.05),
        first="collapse",
        says="learning rate of 3.0e-02",
    ),
    "ruined before the first row, a small vocabulary": Planted(
        run=course(6.9, 5.1, total=400, every=10, eval_every=100, first=10, peak=0.03, noise=0.05),
        first="collapse",
        says="learning rate",
    ),
    "thrown above uniform guessing before the first row": Planted(
        run=course(16.0, 7.4, total=300, every=10, eval_every=100, first=10, peak=0.05, noise=0.05, fast=30),
        first="collapse",
        says="learning rate",
    ),
    "ruined by the second row": Planted(
        run=changed(
            course(8.2, 6.8, total=400, every=10, eval_every=100, first=10, peak=0.03, noise=0.05),
            lambda row: plus(row, -4.6 if row.step == 10 else 0.0),
        ),
        first="divergence",
        says="learning rate",
    ),
    # ---- the first loss
    "labels shifted twice": Planted(
        run=course(9.25, 6.6, noise=0.03, header=_GPT2),
        first="impossible_initial_loss",
        says="labels shifted twice",
        not_in=_TUNED[2:],
    ),
    "labels shifted twice, and it learns": Planted(
        run=course(9.5, 4.6, header="init_from = gpt2"),
        first="impossible_initial_loss",
        says="labels shifted twice",
        only=_CONSOLES,
    ),
    "random weights in place of gpt2": Planted(
        run=course(10.85, 7.2, header="Loading pretrained gpt2"),
        first="impossible_initial_loss",
        says="random weights",
        only=_CONSOLES,
    ),
    "another tokenizer": Planted(
        run=course(11.9, 6.9, header="model_name_or_path: gpt2 (pretrained)"),
        first="impossible_initial_loss",
        says="another tokenizer",
        only=_CONSOLES,
    ),
    "padding that is scored": Planted(
        run=course(7.6, 5.2, header="pretrained: True, model gpt2"),
        first="impossible_initial_loss",
        says="padding",
        only=_CONSOLES,
    ),
    "gpt2 named, neither kind of weights": Planted(
        run=course(9.4, 3.9, peak=3e-4, header="model: gpt2"), first="impossible_initial_loss", only=_CONSOLES
    ),
    "a log of one row": Planted(
        run=replace(course(9.3, 6.0, header="model: gpt2"), rows=[Row(step=0, train=9.31, val=9.36, rate=2e-6)]),
        first="impossible_initial_loss",
        says="labels shifted twice",
        only=_CONSOLES,
    ),
    "resumed, with random weights": Planted(
        run=course(10.85, 7.2, first=5000, total=9000, peak=3e-4, header="Resuming training from checkpoint-5000"),
        first="impossible_initial_loss",
        says="the weights were not loaded",
        only=_CONSOLES,
    ),
    # ---- the course
    "divergence": Planted(
        run=changed(FINE, lambda row: plus(row, 0.004 * max(0, row.step - 1000))), first="divergence"
    ),
    "nan": Planted(run=changed(FINE, lambda row: plus(row, math.nan) if row.step >= 1200 else row), first="nonfinite"),
    "overfitting": Planted(
        run=changed(FINE, lambda row: _overfits(row, turn=800, down=0.8, up=0.4)), first="overfitting"
    ),
    "mild overfitting": Planted(
        run=changed(course(3.3, 3.0, noise=0.012), lambda row: _overfits(row, turn=1000, down=1.4, up=0.05)),
        first="overfitting",
        says="mild",
    ),
    "overfitting, at a training loss that is low already": Planted(
        run=changed(course(1.6, 0.6, fast=12, gap=0.8), lambda row: _overfits(row, turn=800, down=0.3, up=1.1)),
        first="overfitting",
    ),
    "validation rises, training is flat": Planted(
        run=changed(course(3.9, 3.2, fast=15), lambda row: _overfits(row, turn=800, down=0.0, up=0.3)),
        first="validation_rises",
    ),
    "a spike": Planted(
        run=changed(FINE, lambda row: plus(row, 2.5) if 1200 <= row.step < 1300 else row), first="spike"
    ),
    "a spike at a high rate": Planted(
        run=changed(course(3.9, 3.2, peak=1.5e-3), lambda row: plus(row, 2.5) if 400 <= row.step < 500 else row),
        first="spike",
        says="learning rate",
    ),
    "plateau at a rate too low": Planted(run=course(10.85, 9.6, peak=1e-6, fast=1.0), first="plateau", not_in=_TUNED),
    "gradient norm 0": Planted(
        run=changed(course(3.9, 3.9), lambda row: replace(row, norm=0.0)),
        first="detached_gradients",
        only=_WITH_NORMS,
    ),
    "a gradient norm that grows beside a sound loss": Planted(
        run=changed(FINE, lambda row: replace(row, norm=round(10 ** (3 * row.step / 2000), 3))),
        first="gradient_growth",
        says="the median of the first 3 recorded norms is 1.19, of the last 3 841",
        only=_WITH_NORMS,
    ),
    "healthy, a gradient norm that grows tenfold": Planted(
        run=changed(FINE, lambda row: replace(row, norm=round(10 ** (row.step / 2000), 3))),
        first=None,
        only=_WITH_NORMS,
    ),
    # ---- the rate
    "the rate stays though a cosine was announced": Planted(
        run=changed(course(3.9, 3.2, header="lr_scheduler_type: cosine"), lambda row: replace(row, rate=2e-5)),
        first="schedule_not_stepping",
        only=_CONSOLES,
    ),
    "another rate than configured": Planted(
        run=course(3.9, 3.2, peak=2e-6, header="learning_rate: 2e-5"), first="learning_rate_mismatch", only=_CONSOLES
    ),
    "a higher rate than configured": Planted(
        run=course(3.9, 3.2, peak=1.6e-4, header="learning_rate=2e-05"), first="learning_rate_mismatch", only=_CONSOLES
    ),
    "rate 0": Planted(
        run=changed(course(3.9, 3.9), lambda row: replace(row, rate=0.0)),
        first="schedule_not_stepping",
        not_in=("mlx-lm",),
    ),
    "a rate too low to move a pretrained model": Planted(
        run=course(3.4, 3.4, peak=1e-8, noise=0.01), first="plateau", says="too low", not_in=("mlx-lm",)
    ),
    "a rate that hardly moves a pretrained model": Planted(
        run=course(3.40, 3.38, peak=1e-6), first="plateau", says="1.0e-06 is too low", not_in=("mlx-lm",)
    ),
    "healthy, at 1e-6, and it learns": Planted(run=course(0.9, 0.85, peak=1e-6, noise=0.005), first=None),
    "healthy, the end of a schedule": Planted(
        run=course(3.40, 3.39, peak=8e-7, first=1700, total=2000, every=10), first=None, not_in=_DICTS
    ),
    "the warm-up a second time": Planted(
        run=changed(FINE, lambda row: replace(row, rate=rate_at(row.step % 1000, 2000, 2e-5, 200))),
        first="schedule_restarted",
    ),
    "the warm-up a second time, between two rows": Planted(
        run=changed(FINE, lambda row: replace(row, rate=rate_at(row.step % 1020, 1400, 2e-5, 120))),
        first="schedule_restarted",
        says="starts again at step 10",
    ),
    "the warm-up a second time, from half of the rate": Planted(
        run=changed(
            FINE, lambda row: replace(row, rate=rate_at(row.step - (975 if row.step >= 1000 else 0), 2000, 2e-5, 60))
        ),
        first="schedule_restarted",
    ),
    "healthy, a rate that rises as slowly as it falls": Planted(
        run=changed(FINE, lambda row: replace(row, rate=2e-5 * (0.1 + abs(row.step % 1000 - 500) / 500))), first=None
    ),
    "healthy, warm restarts of four rows each": Planted(
        run=changed(FINE, lambda row: replace(row, rate=1e-5 * (1 + math.cos(math.pi * (row.step % 200) / 200)))),
        first=None,
    ),
    "the rate a hundredfold in the middle": Planted(
        run=changed(
            course(4.3, 3.6, peak=3e-4, total=200, every=5, eval_every=25),
            lambda row: replace(plus(row, 1.8), rate=3e-2) if row.step > 120 else replace(row, rate=3e-4),
        ),
        first="learning_rate_jump",
        not_in=("mlx-lm",),
    ),
    "no better than before": Planted(
        run=changed(
            course(3.3, 3.3, peak=5e-4), lambda row: plus(row, 0.0 if row.step == 0 else math.exp(-row.step / 2500))
        ),
        first="divergence",
        says="worse",
        not_in=("mlx-lm", *_DICTS),
    ),
    # ---- how the training loss is logged
    "a sum over 16 micro-batches": Planted(
        run=changed(FINE, lambda row: replace(row, train=decimals(16 * (row.train or 0)))),
        first="impossible_initial_loss",
        says="a sum over 16 micro-batches",
        not_in=_DICTS,
    ),
    "divided by 8 once more": Planted(
        run=changed(SCRATCH, lambda row: replace(row, train=decimals((row.train or 0) / 8))),
        first="train_val_gap",
        says="divided by 8",
        not_in=_TUNED,
    ),
}
