"""The rows of a log put in order: losses in nats, each evaluation told once, steps for rows without, numbers cut
short, restarts and runs told apart."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import compress, pairwise

from results.diagnosis.logs.lines import LogRow
from results.diagnosis.trace import Unit

MIXED_BACKS = 8
_PAIRS = (("train_loss", "train_perplexity"), ("val_loss", "val_perplexity"))


def is_same(a: float | None, b: float | None) -> bool:
    """Whether two losses may be one, printed with other decimals; whatever is not recorded may be anything."""
    if a is None or b is None or (math.isnan(a) and math.isnan(b)):
        return True
    return any(round(a, digits) == round(b, digits) in (a, b) for digits in (2, 3, 4, 17))


def in_nats(rows: Sequence[LogRow], notes: list[str]) -> None:
    """Give losses in nats/token to rows that have perplexities alone, and to those whose losses are in bits.

    A log that has nothing but bits per byte gets nats/byte.
    """
    pairs = [(getattr(row, loss), getattr(row, perplexity)) for row in rows for loss, perplexity in _PAIRS]
    said = [(loss, known) for loss, known in pairs if None not in (loss, known) and 2 < known < math.inf]
    bits = sum(abs(math.log2(perplexity) - loss) < 0.01 * loss for loss, perplexity in said)
    if said and bits >= 0.8 * len(said):
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
    if all(row.val_loss is None for row in rows):
        _scale_val_bits(rows, notes)


def _scale_val_bits(rows: Sequence[LogRow], notes: list[str]) -> None:
    """Give validation losses in nats/token to rows that have bits per byte, where the training losses are per token.

    How many bytes a token has, few such logs say. At the first evaluation the two losses are nearly one.
    """
    trained = [row for row in rows if row.train_loss is not None and math.isfinite(row.train_loss)]
    first = next((row for row in rows if row.val_bits is not None and 0 < row.val_bits < math.inf), None)
    if not trained or first is None:
        return
    nearest = min(trained, key=lambda row: abs(row.line - first.line))
    scale = (nearest.train_loss or 0.0) / (nearest.train_bits or first.val_bits or math.inf)
    for row in rows:
        row.val_loss = row.val_bits and scale * row.val_bits
    notes.append("the validation losses are in bits: the training loss at the first tells what they are in nats/token")


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


def drop_cut_numbers(rows: list[LogRow]) -> None:
    """Forget numbers that touch a line's end where other lines go on after that field: they were cut short."""
    for name in {row.at_line_end for row in rows if row.at_line_end}:
        having = [row for row in rows if getattr(row, name) is not None]
        at_end = [row for row in having if row.at_line_end == name]
        if 2 * len(at_end) < len(having):
            for row in at_end:
                setattr(row, name, None)


def drop_placeholders(rows: Sequence[LogRow]) -> None:
    """Forget the validation losses of NaN, 0 or -1 that stand for none in the rows between evaluations.

    And the training losses of NaN that stand for none in the evaluations' own rows.
    """
    having = [row for row in rows if row.val_loss is not None]
    empty = [row.val_loss in (0, -1) or row.val_loss != row.val_loss for row in having]
    # What is lost for good does not come back, and comes at evaluations alone.
    comes_back = sum(before and not after for before, after in pairwise(empty))
    if comes_back >= 2 and 2 * sum(empty) > len(empty):
        for row in compress(having, empty):
            row.val_loss = None
    trained = [row for row in rows if row.train_loss is not None]
    lost = [row for row in trained if row.train_loss != row.train_loss]
    with_both = sum(row.val_loss is not None for row in trained) - len(lost)
    # Where most rows have both, a validation loss may be the last one's, carried on beside what is lost for good.
    are_apart = 2 * with_both < len(trained) - len(lost)
    if are_apart and all(row.val_loss is not None and math.isfinite(row.val_loss) for row in lost):
        for row in lost:
            row.train_loss = None


def number_rows(rows: list[LogRow], total_steps: int | None, announced: Mapping[str, str], notes: list[str]) -> Unit:
    """Give steps to rows without: by epoch where the run's length is known, else by counting. Return what is counted.

    total_steps: what the run's last line implies.
    """
    without = [row for row in rows if row.step is None]
    if not without:
        return "step"
    if len(without) < len(rows):
        rows[:] = [row for row in rows if row.step is not None]
        return "step"
    end_step = _end_step(without, total_steps, announced)
    count = _count(rows)
    if not end_step:
        notes.append("the log names no steps: rows are counted instead")
        return "row"
    last_epoch = max(row.epoch or 0.0 for row in rows)
    by_epoch = [round((row.epoch or 0.0) / last_epoch * end_step) for row in rows]
    if len(set(by_epoch)) < count:
        # Epochs of two decimals are too coarse for so many rows, which a Trainer logs at even distances.
        by_epoch = [round((row.step or 0) / count * end_step) for row in rows]
    for row, step in zip(rows, by_epoch, strict=True):
        row.step = step
    return "step"


def _end_step(rows: list[LogRow], total_steps: int | None, announced: Mapping[str, str]) -> int | None:
    """The step of the last row: of the run's last line, or the announced one as far as the epochs have got."""
    last_epoch = max((row.epoch for row in rows if row.epoch is not None), default=0.0)
    if total_steps or not last_epoch:
        return total_steps if last_epoch else None
    epochs, announced_steps = float(announced.get("epochs", 0)), int(announced.get("total_steps", 0))
    if not epochs or not announced_steps or last_epoch > 1.01 * epochs:
        return None
    return round(announced_steps * last_epoch / epochs)


def _count(rows: list[LogRow]) -> int:
    """Number the rows from 1; a Trainer prints the evaluation after the loss of the same step."""
    count = 0
    for index, row in enumerate(rows):
        follows = index > 0 and row.train_loss is None and row.epoch is not None and row.epoch == rows[index - 1].epoch
        count += not follows
        row.step = count
    return count


def are_mixed(rows: Sequence[LogRow]) -> bool:
    """Whether the rows go back time and again by a little, as lines of processes do that are not in step.

    An epoch goes back to its start each time, and a run is not resumed every few rows.
    """
    backs = [step_of(b) for a, b in pairwise(rows) if a.run == b.run and step_of(b) < step_of(a)]
    if len(backs) < max(MIXED_BACKS, len(rows) / 5):
        return False
    moves_on = 2 * (backs[-1] - backs[0]) > step_of(rows[-1]) - step_of(rows[0])
    return moves_on and sum(a <= b for a, b in pairwise(backs)) > 0.6 * len(backs)


def runs_of(rows: list[LogRow]) -> list[list[list[LogRow]]]:
    """Return the log's runs, each as segments between restarts; one that starts where the run began is a new run."""
    runs: list[list[list[LogRow]]] = []
    offset = 0
    by_epoch = False
    epoch = 0.0
    last = -1
    for index, row in enumerate(rows):
        assert row.step is not None
        is_other = index > 0 and row.run != rows[index - 1].run
        if is_other:
            offset, epoch, last = 0, 0.0, -1
        step = row.step + offset
        if step < last:
            if row.epoch is not None and row.epoch > epoch:
                # Each epoch counts its steps from the start.
                if (row.total_steps or 0) + offset >= last:
                    offset += row.total_steps or 0
                else:
                    # Counted from 0, an epoch is an interval longer than its last step.
                    following = rows[index + 1].step if index + 1 < len(rows) else None
                    offset = last + (following or 0 if row.step == 0 else 0)
                step = row.step + offset
            elif not _goes_on_from(rows, index, last - offset):
                row.step = -1
                continue
            else:
                offset, step = 0, row.step
        epoch = max(epoch, row.epoch or 0.0)
        # A second evaluation of one step, with another outcome, is a run resumed there.
        again = step == last and not is_same(runs[-1][-1][-1].val_loss, row.val_loss)
        if not runs or is_other or ((step < last or again) and step <= step_of(runs[-1][0][0])):
            runs.append([[]])
        elif step < last or again or row.after_restart:
            runs[-1].append([])
        row.step = last = step
        runs[-1][-1].append(row)
        by_epoch |= offset > 0
    if by_epoch:
        # What the rows say is the length of an epoch.
        for row in rows:
            row.total_steps = None
    return [[segment for segment in run if segment] for run in runs if any(run)]


def _goes_on_from(rows: list[LogRow], index: int, last: int) -> bool:
    """Whether the log really goes back at `index`: one line that names an old step (a summary, say) is no restart."""
    following = rows[index + 1] if index + 1 < len(rows) else None
    return following is not None and following.step is not None and step_of(rows[index]) <= following.step < last


def step_of(row: LogRow) -> int:
    assert row.step is not None
    return row.step
