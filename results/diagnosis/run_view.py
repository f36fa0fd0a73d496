"""RunView: a RunTrace with its start, its coarse curve and the stability monitor's findings. It judges nothing."""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from results.diagnosis.trace import Column, RunTrace
from trainable.stability import Finding, judge_trace

GPT2_VOCAB_SIZE = 50_257
DENSE_ROWS = 100
"""With fewer recorded losses the monitor's windows, made for single steps, have nothing to hold."""
COARSE_BINS = 40
CUSTOMARY_VOCAB_SIZES = (
    *(256, 512, 1000, 1024, 2000, 2048, 4000, 4096, 5000, 8000, 8192, 16000, 16384, 30522, 32000, 32768, 49152, 65536),
    *(100_277, 128_256, 151_936, 256_000, 262_144),
)
"""Sizes to which tokenizers are trained, but for 10,000: its ln is where GPT-2 on doubly shifted labels starts."""
SUMMED = 1.8
DIVIDED = 0.3
HIGHEST_START_NATS = 13.1
"""Random weights of the largest vocabularies, 256,000 tokens, start below: a validation loss above is itself a sum."""
SAME_RATIO = 1.25
"""Training losses that keep one ratio to the validation losses, within this factor, are scaled."""
FIRST_STEPS = 20
FEW_STEPS = 1
"""A training loss recorded later is mostly a mean over the steps since the row before, not the loss of the start."""
MEDIAN_ROWS = 200
"""The median of so many rows, evenly taken, is near enough to that of a longer stretch."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is known of a run beside its trace; None is unknown."""

    vocab_size: int | None = None
    pretrained: bool | None = None
    """Whether it began from weights that had learned the language."""
    unigram_entropy: float | None = None
    """Of its training tokens, nats/token."""
    eval_tokens: int | None = None
    """Held-out tokens scored per evaluation."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Finite values at rising steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def between(self, first: float, last: float) -> list[float]:
        """Return the values at steps from `first` to `last`, both included."""
        return list(self.values[bisect_left(self.steps, first) : bisect_right(self.steps, last)])

    def before(self, step: int, rows: int) -> list[float]:
        """Return the last `rows` values before `step`."""
        end = bisect_left(self.steps, step)
        return list(self.values[max(0, end - rows) : end])

    def first_below(self, level: float, *, otherwise: int) -> int:
        """Return the first step whose value is at most `level`, or `otherwise`."""
        return next((step for step, value in zip(self.steps, self.values, strict=True) if value <= level), otherwise)

    def near(self, step: int) -> float:
        """Return the value recorded nearest to `step`."""
        index = bisect_left(self.steps, step)
        around = range(max(0, index - 1), min(index + 1, len(self.steps)))
        return self.values[min(around, key=lambda index: abs(self.steps[index] - step))]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What the rules look at."""

    trace: RunTrace
    vocab_size: int
    vocab_is_known: bool
    pretrained: bool | None
    unigram_entropy: float | None
    eval_tokens: int | None
    train: Curve
    val: Curve
    grad_norm: Curve
    learning_rate: Curve
    coarse: Curve
    """The training loss (the validation loss where there is none): its rows, or medians of at most 40 stretches."""
    start_loss: float | None
    """The first row's, the lower of training and validation."""
    start_step: int
    starts_at_start: bool
    """The first loss is that of (nearly) untouched weights."""
    is_initial: bool
    """The first loss is that of untouched weights, not a mean over steps that have moved them."""
    names_gpt2: bool
    """The record says that the model is GPT-2, which has 50,257 tokens whatever its weights were."""
    is_resumed: bool
    is_dense: bool
    train_scale: float
    """How many times too high the record's training losses are (a sum over micro-batches); `train` is divided by it."""

    @property
    def uniform_loss(self) -> float:
        """What guessing all tokens alike costs."""
        return math.log(self.vocab_size)

    @property
    def unit(self) -> str:
        """What the record counts: "step", or "row" where it names no steps."""
        return self.trace.unit

    @property
    def last_step(self) -> int:
        """The last step recorded."""
        return self.trace.steps[-1]

    @property
    def done_frac(self) -> float | None:
        """Share of the announced steps that was recorded; None when none was announced."""
        return self.last_step / self.trace.total_steps if self.trace.total_steps else None

    @property
    def peak_lr(self) -> float | None:
        """The highest learning rate recorded, else announced."""
        return max(self.learning_rate.values) if self.learning_rate.values else self.announced_lr

    @property
    def peak_lr_words(self) -> str:
        """The highest learning rate as evidence."""
        return f"learning rate up to {self.peak_lr:.2e}" if self.peak_lr else "learning rate not recorded"

    @property
    def announced_lr(self) -> float | None:
        """The peak that the record says was set, None where it says none."""
        rate = float(self.trace.announced.get("learning_rate", "nan"))
        return rate if math.isfinite(rate) else None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The stability monitor's, by step of the trace; of a dense run only."""
        if not self.is_dense:
            return ()
        steps, losses = self.trace.series("train_loss")
        rows = [row for row, loss in enumerate(self.trace.train_loss) if loss is not None]
        if self.trace.origin == "trial" and steps[0] == 0:
            # An evaluation of the start, and no step: with it all counts would be one too many.
            steps, losses, rows = steps[1:], losses[1:], rows[1:]
        span = steps[-1] - steps[0] + 1
        total = max(self.trace.total_steps or 0, steps[-1]) - steps[0] + 1
        # A loss scaler's skipped steps have an infinite norm; only what it does to the loss counts here.
        norms = (self.trace.grad_norm[row] for row in rows)
        found = judge_trace(
            [loss / self.train_scale for loss in losses],
            [norm if norm is not None and math.isfinite(norm) else None for norm in norms],
            [self.trace.step_time_s[row] for row in rows],
            # In rows, as the monitor counts them.
            budget_steps=max(round(len(steps) * total / span), len(steps)),
            unigram_entropy=math.nan if self.unigram_entropy is None else self.unigram_entropy,
            from_scratch=self.from_scratch,
        )
        return tuple(replace(finding, step=steps[finding.step - 1]) for finding in found)

    def finding(self, *kinds: str) -> Finding | None:
        """Return the monitor's first finding of one of the kinds."""
        return next((finding for finding in self.findings if finding.kind in kinds), None)

    @property
    def from_scratch(self) -> bool:
        """Whether the weights began random, told or as it looks."""
        if self.pretrained is not None:
            return not self.pretrained
        return self.start_loss is not None and not self.is_resumed and self.fitting_vocab_size is not None

    @property
    def fitting_vocab_size(self) -> int | None:
        """The known or a customary vocabulary size for which the first loss is that of random weights."""
        if self.start_loss is None or not self.starts_at_start:
            return None
        if -0.05 <= self.start_loss - self.uniform_loss <= 0.3:
            return self.vocab_size
        return None if self.vocab_is_known else self.customary_vocab_size

    @property
    def customary_vocab_size(self) -> int | None:
        """The customary vocabulary size for which the first loss is that of random weights, whatever is known."""
        if self.start_loss is None or not self.starts_at_start:
            return None
        fits = (size for size in CUSTOMARY_VOCAB_SIZES if -0.02 <= self.start_loss - math.log(size) <= 0.2)
        return next(fits, None)


def view(trace: RunTrace, context: Context) -> RunView:
    """Return the trace with all that the rules need of it."""
    train, val = _curve(trace, "train_loss"), _curve(trace, "val_loss")
    train_scale = _train_scale(train, val)
    train = replace(train, values=tuple(value / train_scale for value in train.values))
    main = train if len(train) >= len(val) else val
    first = min((curve.steps[0] for curve in (train, val) if curve.steps), default=0)
    start = [curve.values[0] for curve in (train, val) if curve.steps and curve.steps[0] == first]
    vocab_size = context.vocab_size or int(trace.announced.get("vocab_size", 0))
    is_named = vocab_size > 1
    names_gpt2 = trace.announced.get("model") == "gpt2" and (not is_named or vocab_size in (GPT2_VOCAB_SIZE, 50_304))
    pretrained = context.pretrained
    if pretrained is None and "pretrained" in trace.announced:
        pretrained = trace.announced["pretrained"] == "yes"
    interval = main.steps[1] - main.steps[0] if len(main) > 1 else 0
    # A log that begins beyond its own interval has lost its beginning: its first loss is no start.
    is_resumed = "resumed" in trace.announced or first > max(2 * interval, 100)
    counts_rows = trace.unit == "row"
    return RunView(
        trace=trace,
        vocab_size=vocab_size if is_named else GPT2_VOCAB_SIZE,
        vocab_is_known=is_named or names_gpt2,
        pretrained=pretrained,
        unigram_entropy=context.unigram_entropy,
        eval_tokens=context.eval_tokens,
        train=train,
        val=val,
        grad_norm=_curve(trace, "grad_norm"),
        learning_rate=_curve(trace, "learning_rate"),
        coarse=_coarse(main),
        start_loss=min(start, default=None),
        start_step=first,
        starts_at_start=first <= FIRST_STEPS and not is_resumed and not counts_rows,
        is_initial=not is_resumed and not counts_rows and first <= FEW_STEPS,
        names_gpt2=names_gpt2,
        is_resumed=is_resumed,
        is_dense=len(trace.series("train_loss")[0]) >= DENSE_ROWS,
        train_scale=train_scale,
    )


def _curve(trace: RunTrace, column: Column) -> Curve:
    steps, values = trace.finite(column)
    return Curve(steps=tuple(steps), values=tuple(values))


def _train_scale(train: Curve, val: Curve) -> float:
    if not train.steps or len(val) < 4:
        return 1.0
    ratios = [train.near(step) / value for step, value in zip(val.steps, val.values, strict=True) if value > 0]
    ratio = statistics.median(ratios) if len(ratios) == len(val) else 1.0
    is_divided = 0 < ratio <= DIVIDED and val.values[-1] < 0.9 * val.values[0] < 0.9 * HIGHEST_START_NATS
    is_scaled = ratio >= SUMMED or is_divided
    return ratio if is_scaled and max(ratios) <= SAME_RATIO * min(ratios) else 1.0


def _coarse(curve: Curve) -> Curve:
    rows_per_bin = len(curve) // COARSE_BINS
    if rows_per_bin < 2:
        return curve
    starts = range(0, len(curve) - rows_per_bin + 1, rows_per_bin)
    return Curve(
        steps=tuple(curve.steps[start + rows_per_bin // 2] for start in starts),
        values=tuple(statistics.median(curve.values[start : start + rows_per_bin]) for start in starts),
    )


def evenly(values: Sequence[float], most: int = MEDIAN_ROWS) -> Sequence[float]:
    """Return the values, or at most twice `most` of them, evenly taken."""
    return values[:: max(1, len(values) // most)]


def noise_sd(values: Sequence[float]) -> float:
    """Return the standard deviation of what is no trend in a series: from its second differences, robustly."""
    # A slow trend cancels in a second difference, whose variance is 1 + 4 + 1 times that of independent noise; and a
    # median absolute deviation, here about 0, is 1 / 1.4826 of a normal distribution's standard deviation.
    seconds = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return 1.4826 * statistics.median(seconds) / math.sqrt(6) if seconds else 0.0
