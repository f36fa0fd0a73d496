"""The rows of a log put in order: steps for rows without, numbers cut short, restarts and runs told apart."""

from collections.abc import Mapping

from results.diagnosis.logs.lines import LogRow
from results.diagnosis.logs.losses import is_same
from results.diagnosis.trace import Unit


def drop_cut_numbers(rows: list[LogRow]) -> None:
    """Forget numbers that touch a line's end where other lines go on after that field: they were cut short."""
    for name in {row.at_line_end for row in rows if row.at_line_end}:
        having = [row for row in rows if getattr(row, name) is not None]
        at_end = [row for row in having if row.at_line_end == name]
        if 2 * len(at_end) < len(having):
            for row in at_end:
                setattr(row, name, None)


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


def runs_of(rows: list[LogRow]) -> list[list[list[LogRow]]]:
    """Return the log's runs, each as segments between restarts; one that starts where the run began is a new run."""
    runs: list[list[list[LogRow]]] = []
    offset = 0
    by_epoch = False
    epoch = 0.0
    last = -1
    for index, row in enumerate(rows):
        assert row.step is not None
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
        if not runs or ((step < last or again) and step <= step_of(runs[-1][0][0])):
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
