"""A row of named values (a JSON object, a table's line, TensorBoard scalars) as a LogRow: the name says what it is."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise

from results.diagnosis.logs.lines import LOSS_NAMES, MAX_STEP, OTHER_WORDS, VAL_WORDS, LogRow, if_measured

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_BOUNDS = ("__min", "__max")
"""W&B exports the extremes of what it drew beside each column."""
_JOINED = {"valloss": ("val", "loss"), "trainloss": ("train", "loss"), "evalloss": ("eval", "loss")}
_STEP_NAMES = (
    ("trainer", "global", "step"), ("train", "global", "step"), ("global", "step"), ("optimizer", "step"), ("step",),
    ("steps",), ("train", "step"), ("iteration",), ("iter",), ("iters",), ("it",), ("num", "updates"),
    ("valid", "num", "updates"), ("update",), ("current", "steps"),
)  # fmt: skip
"""The first that a row holds is its step; W&B's own counter `_step` comes out as ("step",)."""
_CLOCK_NAMES = (("runtime",), ("elapsed",), ("elapsed", "s"), ("elapsed", "time"), ("relative", "time", "wall"))
_SPEED_NAMES = (("steps", "per", "second"), ("train", "steps", "per", "second"), ("it", "sec"), ("steps", "per", "s"))
_TOTAL_NAMES = (("total", "steps"), ("max", "steps"))
_TIMES = {("step", "time", "s"): 1.0, ("step", "time"): 1.0, ("step", "time", "ms"): 0.001, ("dt", "ms"): 0.001,
          ("iter", "time"): 1.0, ("iter", "time", "ms"): 0.001}  # fmt: skip
_MEASURED = ("epoch", "elapsed_s", "steps_per_s", "step_time_s")
_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?(?:e[-+]?\d+)?)(k|m|%)?", re.I)
_SUFFIXES = {"k": 1e3, "m": 1e6}
TENSORBOARD_COLUMNS = ("wall time", "step", "value")
"""Of its exports; the file's name alone says what the value is."""
SUMMARY, MEAN = "train_runtime", "train_loss"
"""In a Trainer's last row: that loss is a mean over the whole run."""


def row_of(values: Mapping[str, object]) -> LogRow | None:
    """Return the row of named values, or None when there is nothing of a training log among them."""
    if SUMMARY in values:
        return None
    # TensorBoard's scalars of one step stand together: the last step's own loss too.
    left = f"train/{MEAN}" if f"train/{SUMMARY}" in values else None
    row = LogRow()
    ranks: dict[str, tuple[int, int]] = {}
    for name, value in _split(values):
        meaning = field_of(name)
        number = number_of(value)
        if meaning is None or number is None or name == left:
            continue
        field, *rank = meaning
        is_count = field in ("step", "total_steps")
        if is_count and not (0 <= number <= MAX_STEP):
            continue
        if field in _MEASURED and (number := if_measured(number)) is None:
            continue
        if field not in ranks or tuple(rank) < ranks[field]:
            ranks[field] = (rank[0], rank[1])
            scale = _TIMES.get(words_of(name), 1.0) if field == "step_time_s" else 1.0
            setattr(row, field, int(number) if is_count else number * scale)
    return row if row.says_something else None


def _split(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the names and values; of "global_step/max_steps": "10/800" both parts."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            # {"train": {"loss": 3.2}} says train/loss.
            yield from ((f"{name}/{key}", inner) for key, inner in value.items())
        elif isinstance(value, str) and name.count("/") == value.count("/") == 1:
            yield from zip(name.split("/"), value.split("/"), strict=True)
        else:
            yield name, value


@cache
def field_of(name: str) -> tuple[str, int, int] | None:
    """Return the LogRow field that a name stands for and how surely (lower is surer), or None."""
    words = words_of(name)
    if not words or name.lower().endswith(_BOUNDS) or not OTHER_WORDS.isdisjoint(word.encode() for word in words):
        return None
    # W&B's export puts the run's name before the metric's.
    for names, field in (
        (_STEP_NAMES, "step"), (_TOTAL_NAMES, "total_steps"), (_CLOCK_NAMES, "elapsed_s"),
        (_SPEED_NAMES, "steps_per_s"),
    ):  # fmt: skip
        if words in names:
            return field, names.index(words), 0
    if words in _TIMES:
        return "step_time_s", 0, 0
    if words[-1] == "epoch" and "loss" not in words:
        return "epoch", len(words), 0
    is_val = any(word.encode() in VAL_WORDS for word in words)
    if ("loss" in words and "bits" not in words) or words[-2:] == ("cross", "entropy") or words[-1] == "nll":
        # Lightning writes train_loss_step and train_loss_epoch: the first is what a row is of.
        return ("val_loss" if is_val else "train_loss"), int("epoch" in words or words[-1] == "nll"), len(words)
    is_bits = words[-1] in ("bpb", "bpc", "bits") or words[-3:-1] == ("bits", "per")
    if is_bits or words[-1] in ("ppl", "perplexity"):
        return f"{'val' if is_val else 'train'}_{'bits' if is_bits else 'perplexity'}", 0, len(words)
    if words[0] == "lr" or words[-1] == "lr" or ("learning", "rate") in pairwise(words):
        return "learning_rate", len(words), 0
    if "gnorm" in words or ({"grad", "gradient"} & set(words) and "norm" in words):
        return "grad_norm", len(words), 0
    return None


@cache
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: of "run-7 - trainer/global_step" those after the run's name."""
    metric = name.rpartition(" - ")[2]
    words = (word.lower() for word in _WORD.findall(metric))
    return tuple(part for word in words for part in _JOINED.get(word, (word,)))


def number_of(value: object) -> float | None:
    """Return a value as a number: "1,234", "1.5k", "nan" and "12 %" are some; None for what is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return None if 1e300 <= abs(value) < math.inf else float(value)
    text = str(value).strip().strip("'\"")
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(text)
    match = _NUMBER.fullmatch(text.replace(" ", ""))
    if match is None or not any(character.isdigit() for character in match[1]):
        return None
    return float(match[1].replace(",", "")) * _SUFFIXES.get((match[2] or "").lower(), 1.0)


def has_columns(names: Iterable[str]) -> bool:
    """Whether names of columns are those of a training log: a loss, and what it belongs to."""
    fields = {meaning[0] for name in names if (meaning := field_of(name))}
    return not fields.isdisjoint(LOSS_NAMES) and not fields.isdisjoint(("step", "epoch"))
