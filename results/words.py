"""Numbers, statuses and configurations as words, for terminal and report. It reads nothing and decides nothing."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from spaces.budget import Budget, duration_text
from trainable.config import DOCUMENTED, HYPERPARAMETERS, SCHEDULES_WITH_WARMUP
from trainable.errors import count_words
from trainable.rows import ENDINGS, TrialStatus

UNKNOWN = "–"
"""In place of an unknown number."""
LARGEST_LOSS = 1e5
"""Of an unstable trial, written out: a table's columns are no wider."""

STATUS_LABELS: Mapping[str, str] = {status: status.replace("_", " ") for status in (*ENDINGS, "running", "interrupted")}
"""Every status in words, in the order of lists."""

LABELS: Mapping[str, str] = {
    "grad_accum_steps": "gradient accumulation",
    "lr_schedule": "LR schedule",
    "warmup_steps": "warm-up steps",
    "warmup_frac": "warm-up share",
    "min_lr_frac": "lowest LR share",
    "decay_frac": "decay share",
    "grad_clip_norm": "gradient clip norm",
    "use_lora": "LoRA",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
    "lora_targets": "LoRA targets",
}
"""Of hyperparameters whose own name is not the usual word."""

_ALWAYS_SAID = (
    *("batch_size", "block_size", "grad_accum_steps", "learning_rate", "lr_schedule", "warmup_frac"),
    *("use_lora", "lora_rank", "lora_alpha", "lora_targets"),
)
"""Searched or not."""


def printable(text: str) -> str:
    """Return text of any origin with control characters escaped, except newline and tab."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text)


def label(name: str) -> str:
    """Return a hyperparameter's name for a person."""
    return LABELS.get(name, name.replace("_", " "))


def unit(name: str) -> str:
    """Return a hyperparameter's unit, empty where it has none."""
    if name == "warmup_frac":
        return "share of the steps"
    return str(HYPERPARAMETERS[name].metadata["unit"]) if name in HYPERPARAMETERS else ""


def loss_words(loss: float | None) -> str:
    """Return a loss in nats/token with four digits, or a dash."""
    return UNKNOWN if loss is None else f"{loss:.4f}"


def trial_loss_words(trial: Mapping[str, Any]) -> str:
    """Return a trial's loss for a table: val_loss, or the training loss at which an unstable one was ended."""
    if trial["status"] != "unstable":
        return loss_words(trial["val_loss"])
    # Its evaluations were made before it became unstable.
    loss = trial["end_loss"]
    return "non-finite" if loss is None else f"{loss:.4f} (train)" if loss < LARGEST_LOSS else f"{loss:.3g} (train)"


def run_words(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """Return a run's name: baseline, trial 7, of a confirmation run trial 7, seed 2."""
    match row["purpose"]:
        case "confirmation":
            is_baseline = baseline is not None and row["of_trial"] == baseline["trial_id"]
            return f"{_trial_words(row['of_trial'], is_baseline)}, seed {row['seed']}"
        case "attribution":
            return f"{row['combination']}, seed {row['seed']}"
    return _trial_words(row["trial_id"], row["is_baseline"])


def _trial_words(trial_id: int, is_baseline: bool) -> str:
    return "baseline" if is_baseline else f"trial {trial_id}"


def difference_words(difference: float | None) -> str:
    """Return a difference of losses with its sign and four digits, a smaller one as -2.3e-05, or a dash."""
    if difference is None:
        return UNKNOWN
    # 0.0000 would contradict "beat the baseline" and an interval without 0.
    is_small = 0 < abs(difference) < 0.5e-4
    return f"{difference:+.1e}" if is_small else f"{difference:+.4f}"


def amount_words(nats: float) -> str:
    """Return the size of a difference of losses, without its sign."""
    return difference_words(abs(nats)).lstrip("+")


def scored_tokens(document: Mapping[str, Any]) -> int:
    """Return how many held-out tokens a study's evaluation scores, as trainable.evaluation.eval_windows() takes them.

    Fewer than were asked for where the text has no more, or where half a block does not divide them.
    """
    evaluation, val_tokens = document["evaluation"], document["corpus"]["val_tokens"]
    stride = evaluation["block_size"] // 2
    there = max(0, (val_tokens - evaluation["block_size"] - 1) // stride + 1)
    return int(stride * min(evaluation["tokens"] // stride, there))


def interval_words(low: float | None, high: float | None) -> str:
    """Return the interval of a difference; a bound that is None is none."""
    if low is not None and high is not None:
        return f"{difference_words(low)} to {difference_words(high)}"
    if low is not None:
        return f"from {difference_words(low)} up"
    return "without bounds" if high is None else f"up to {difference_words(high)}"


def value_words(value: Any) -> str:
    """Return a hyperparameter's value: a name unchanged, a number with three digits, None as a dash."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    text = f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    # 1.00e-05 would show digits that nobody gave.
    return f"{float(mantissa):g}e{int(exponent)}" if exponent else text


def range_words(low: float, high: float, to: str = " to ") -> str:
    """Return two values as a range, or the value where both are equal."""
    return value_words(low) if low == high else f"{value_words(low)}{to}{value_words(high)}"


def local_time_words(time: datetime | str | None) -> str:
    """Return a time to the minute in the local zone: 2026-11-29 04:15 CET."""
    if time is None:
        return UNKNOWN
    known = datetime.fromisoformat(time) if isinstance(time, str) else time
    return f"{known.astimezone():%Y-%m-%d %H:%M %Z}"


def duration_words(seconds: float | None) -> str:
    """Return seconds as 4.2 s, 42 s, 3 min 05 s, 2 h 07 min or 3 d 04 h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large_s, large, small_s, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large_s:
            return f"{whole // large_s} {large} {whole % large_s // small_s:02d} {small}"
    return f"{whole} s"


def token_words(tokens: float | None) -> str:
    """Return a number of tokens as 950, 40.5k, 8.2M."""
    if tokens is None:
        return UNKNOWN
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.6k would round to 1000k, which is 1M.
        if tokens >= 0.9995 * scale:
            return f"{tokens / scale:.3g}{suffix}" if tokens < 999.5 * scale else f"{tokens / scale:.0f}{suffix}"
    return f"{tokens:.0f}"


def budget_words(budget: Budget) -> str:
    """Return a trial's budget: 300,000 training tokens, or 10 min 00 s of device time."""
    if budget.device_s is None:
        return f"{budget.tokens:,} training tokens"
    return f"{duration_words(budget.device_s)} of device time"


def short_budget_words(budget: Budget) -> str:
    """Return a trial's budget for a column or a name: 300k, or 10m."""
    return token_words(budget.tokens) if budget.device_s is None else duration_text(budget.device_s)


def evaluation_words(document: Mapping[str, Any]) -> str:
    """Return how many held-out tokens a study's evaluation scores, at which context; fewer where its text is short."""
    evaluation, scored = document["evaluation"], scored_tokens(document)
    short = " (all that the text gives)" if evaluation["tokens"] - scored >= evaluation["block_size"] // 2 else ""
    return f"{scored:,} held-out tokens at context {evaluation['block_size']}{short}"


def percent_words(share: float | None) -> str:
    """Return a share in per cent, with a digit more where it would be none or all of it; or a dash."""
    if share is None:
        return UNKNOWN
    if 0 < share < 0.0005 or 0.9995 <= share < 1:
        return "under 0.1%" if share < 0.5 else "over 99.9%"
    return f"{share:.1%}" if 0 < share < 0.01 or 0.99 < share < 1 else f"{share:.0%}"


def statuses_words(counts: Mapping[TrialStatus, int]) -> str:
    """Return how many trials have each status that any has: 5 completed, 19 stopped."""
    return ", ".join(f"{count} {STATUS_LABELS[status]}" for status, count in counts.items() if count)


def early_end_words(document: Mapping[str, Any]) -> str | None:
    """Return why a study's search ended early, None where it did not."""
    end = document.get("early_end")
    return end and (
        f"ended after {document['trials_planned']} of {end['most_trials']} trials, "
        f"{end['most_trials'] - document['trials_planned']} saved: the next ones would gain about "
        f"{amount_words(end['gain_nats'])} nats/token, less than the evaluation's noise "
        f"{amount_words(end['noise_nats'])}"
    )


def list_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def batch_words(row: Mapping[str, Any]) -> str:
    """Return the batch size, such as 32, or 8x4 with 4 micro-batches a step."""
    return f"{row['batch_size']}" + (f"x{row['grad_accum_steps']}" if row["grad_accum_steps"] > 1 else "")


def schedule_words(row: Mapping[str, Any]) -> str:
    """Return the schedule's name and its warm-up steps, if any."""
    return f"{row['lr_schedule']} {_warmup_steps(row) or ''}".rstrip()


def _warmup_steps(row: Mapping[str, Any]) -> int:
    return int(row["warmup_steps"]) if row["lr_schedule"] in SCHEDULES_WITH_WARMUP else 0


def config_words(row: Mapping[str, Any]) -> str:
    """Return a configuration: batch x block, LR, schedule, LoRA, and what else was searched."""
    steps = _warmup_steps(row)
    schedule = row["lr_schedule"] + (f" after {count_words(steps, 'step')}" if steps else "")
    targets = f", targets {row['lora_targets']}" if row["lora_targets"] != DOCUMENTED.lora_targets else ""
    lora = f", LoRA rank {row['lora_rank']}, alpha {row['lora_alpha']}{targets}" if row["use_lora"] else ""
    point = json.loads(row.get("point") or "{}")
    others = [f", {label(name)} {value_words(value)}" for name, value in point.items() if name not in _ALWAYS_SAID]
    shape, rate = f"batch {batch_words(row)} x block {row['block_size']}", f"LR {row['learning_rate']:.2e}"
    return f"{shape}, {rate}, {schedule}{lora}{''.join(others)}"
