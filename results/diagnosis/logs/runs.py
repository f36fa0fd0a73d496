"""The rows of a log put in order: steps for rows without, numbers cut short, restarts and runs told apart."""

from results.diagnosis.logs.lines import LogRow


def drop_cut_numbers(rows: list[LogRow]) -> None:
    """Forget numbers that touch a line's end where other lines go on after that field: they were cut short."""
    for name in {row.at_line_end for row in rows if row.at_line_end}:
        having = [row for row in rows if getattr(row, name) is not None]
        at_end = [row for row in having if row.at_line_end == name]
        if 2 * len(at_end) < len(having):
            for row in at_end:
                setattr(row, name, None)


def number_rows(rows: list[LogRow], total_steps: int | None, notes: list[str]) -> None:
    """Give steps to rows without: by epoch where the run's length is known, else by counting."""
    without = [row for row in rows if row.step is None]
    if not without:
        return
    last_epoch = max((row.epoch for row in without if row.epoch is not None), default=None)
    if total_steps and last_epoch:
        for row in without:
            row.step = round((row.epoch or 0) / last_epoch * total_steps)
        return
    if len(without) < len(rows):
        rows[:] = [row for row in rows if row.step is not None]
        return
    notes.append("the log names no steps: rows are counted instead")
    count = 0
    for index, row in enumerate(rows):
        # A Trainer prints the evaluation after the loss of the same step.
        follows = index > 0 and row.train_loss is None and row.epoch is not None and row.epoch == rows[index - 1].epoch
        count += not follows
        row.step = count


def runs_of(rows: list[LogRow]) -> list[list[list[LogRow]]]:
    """Return the log's runs, each as segments between restarts; one that starts where the run began is a new run."""
    runs: list[list[list[LogRow]]] = []
    offset = 0
    epoch = 0.0
    last = -1
    for index, row in enumerate(rows):
        assert row.step is not None
        step = row.step + offset
        if step < last:
            if row.epoch is not None and row.epoch > epoch:
                # Steps are counted anew in each epoch.
                offset += (row.total_steps or 0) if (row.total_steps or 0) + offset >= last else last - offset
                step = row.step + offset
            elif not _goes_on_from(rows, index, last - offset):
                row.step = -1
                continue
            else:
                offset, step = 0, row.step
        epoch = max(epoch, row.epoch or 0.0)
        # A second evaluation of one step, with another outcome, is a run resumed there.
        again = step == last and row.val_loss is not None and runs[-1][-1][-1].val_loss is not None
        if not runs or ((step < last or again) and step <= step_of(runs[-1][0][0])):
            runs.append([[]])
        elif step < last or again:
            runs[-1].append([])
        row.step = last = step
        runs[-1][-1].append(row)
    return [[segment for segment in run if segment] for run in runs if any(run)]


def _goes_on_from(rows: list[LogRow], index: int, last: int) -> bool:
    """Whether the log really goes back at `index`: one line that names an old step (a summary, say) is no restart."""
    following = rows[index + 1] if index + 1 < len(rows) else None
    return following is not None and following.step is not None and step_of(rows[index]) <= following.step < last


def step_of(row: LogRow) -> int:
    assert row.step is not None
    return row.step
