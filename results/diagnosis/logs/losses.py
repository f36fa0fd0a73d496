"""The losses of a log's rows made comparable: nats in place of bits and perplexity, each evaluation told once."""

import math
import statistics
from collections.abc import Sequence
from itertools import groupby

from results.diagnosis.logs.lines import LogRow

ROUNDED_NATS = 0.005
"""By so much a value may differ from itself printed with fewer decimals."""
MOST = 0.8
_PAIRS = (("train_loss", "train_perplexity"), ("val_loss", "val_perplexity"))


def is_same(a: float | None, b: float | None) -> bool:
    """Whether two losses may be one, printed twice; whatever is not recorded may be anything."""
    return a is None or b is None or abs(a - b) <= ROUNDED_NATS


def in_nats(rows: Sequence[LogRow], notes: list[str]) -> None:
    """Give losses in nats/token to rows that have perplexities alone, and to those whose losses are in bits."""
    said = [
        (loss, perplexity)
        for row in rows
        for names in _PAIRS
        if (loss := getattr(row, names[0])) is not None
        and (perplexity := getattr(row, names[1])) is not None
        and 2 < perplexity < math.inf
    ]
    bits = sum(abs(math.log2(perplexity) - loss) < 0.01 * loss for loss, perplexity in said)
    if said and bits >= MOST * len(said):
        notes.append("the losses are in bits, the perplexity is 2 to their power: they are shown in nats/token")
        for row in rows:
            for loss_name, _ in _PAIRS:
                if (loss := getattr(row, loss_name)) is not None:
                    setattr(row, loss_name, loss * math.log(2))
    for row in rows:
        for loss_name, name in _PAIRS:
            perplexity = getattr(row, name)
            if getattr(row, loss_name) is None and perplexity is not None and not perplexity <= 0:
                setattr(row, loss_name, math.log(perplexity))


def drop_carried(rows: Sequence[LogRow]) -> None:
    """Forget a validation loss that later lines only repeat until the next evaluation, as bars and litgpt do."""
    having = [row for row in rows if None not in (row.train_loss, row.val_loss)]
    groups = [list(group) for _, group in groupby(having, key=lambda row: row.val_loss)]
    # Weights that stand still repeat a loss as well, but only once, and it never changes again.
    if len(groups) < 2 or statistics.median(len(group) for group in groups[:-1]) < 2:
        return
    for group in groups:
        for row in group[1:]:
            row.val_loss = None
