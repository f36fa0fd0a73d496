"""The losses of a log's rows made comparable: nats in place of bits and perplexity, each evaluation told once."""

import math
import statistics
from collections.abc import Sequence

from results.diagnosis.logs.lines import LogRow

MOST = 0.8
_PAIRS = (("train_loss", "train_perplexity"), ("val_loss", "val_perplexity"))


def is_same(a: float | None, b: float | None) -> bool:
    """Whether two losses may be one, printed with other decimals; whatever is not recorded may be anything."""
    return a is None or b is None or any(round(a, digits) == round(b, digits) in (a, b) for digits in (2, 3, 4, 17))


def in_nats(rows: Sequence[LogRow], notes: list[str]) -> None:
    """Give losses in nats/token to rows that have perplexities alone, and to those whose losses are in bits.

    A log that has nothing but bits per byte gets nats/byte.
    """
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
    if all(row.train_loss is None and row.val_loss is None for row in rows):
        for row in rows:
            row.train_loss, row.val_loss = (bits and bits * math.log(2) for bits in (row.train_bits, row.val_bits))
        if any(row.has_loss for row in rows):
            notes.append("the losses are in bits per byte or character: they are shown in nats per byte or character")


def drop_carried(rows: Sequence[LogRow]) -> None:
    """Forget a validation loss that later lines only repeat until the next evaluation, as litgpt's do."""
    trained = [row for row in rows if row.train_loss is not None]
    having = [row for row in trained if row.val_loss is not None]
    groups: list[list[LogRow]] = []
    for row in having:
        if groups and is_same(groups[-1][0].val_loss, row.val_loss):
            groups[-1].append(row)
        else:
            groups.append([row])
    # Weights that stand still repeat a loss as well, but at evaluations alone, and it never changes again.
    before = len(trained) - len(having)
    one_carried = len(groups) == 1 and before > 0 and trained[before] is having[0]
    if one_carried or (len(groups) > 1 and statistics.median(len(group) for group in groups[:-1]) >= 2):
        for group in groups:
            for row in group[1:]:
                row.val_loss = None
