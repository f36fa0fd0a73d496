import gzip
import json
import math
import os
import random
import re
import struct
from pathlib import Path

import pytest
from rich.box import ASCII, DOUBLE, HEAVY_HEAD, HORIZONTALS, MARKDOWN, ROUNDED, SIMPLE, Box
from rich.console import Console
from rich.table import Table

from results.diagnosis.logs import training_log
from results.diagnosis.logs.lines import read_line, with_decimal_points
from results.diagnosis.logs.training_log import log_in, read_training_log
from results.diagnosis.render import report_of_trace
from results.diagnosis.run_view import Context
from results.diagnosis.trace import RunTrace
from tests.results.logs.consoles import (
    BITS,
    COMMAS,
    COMPOSER,
    CONSOLES,
    FASTAI,
    NEOX,
    OLMO,
    PERPLEXITY,
    SHORT_STEPS,
    TRAINER_END,
)
from tests.results.logs.formats import event_record
from tests.results.owner_log import EVALUATION_S, STORY, owner_log, story_step_s
from trainable.errors import UserError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "training.log"


def read(log: Path, text: str | bytes) -> RunTrace:
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_training_log(log)


def at(trace: RunTrace, step: int) -> dict[str, float | None]:
    index = trace.steps.index(step)
    columns = ("train_loss", "val_loss", "grad_norm", "learning_rate", "step_time_s")
    return {name: getattr(trace, name)[index] for name in columns if getattr(trace, name)[index] is not None}


def test_the_owners_lines(log: Path) -> None:
    trace = read(
        log,
        "step 0/5000 (0.0%): train loss 9.2270, val loss 9.2680 | LR: 2.00e-06 | 17.5s (0.00 steps/sec)\n"
        "step 25/5000 (0.5%) | 0.66 steps/sec | ETA: 126.3m\n"
        "step 500/5000 (10.0%): train loss 6.9544, val loss 7.1291 | LR: 2.00e-05 | 480.9s (1.04 steps/sec)\n",
    )
    assert trace.steps == (0, 25, 500)
    assert trace.train_loss == (9.2270, None, 6.9544)
    assert trace.val_loss == (9.2680, None, 7.1291)
    assert trace.learning_rate == (2e-6, None, 2e-5)
    assert trace.total_steps == 5000
    assert trace.announced["printed_speed"] == "mean"
    # 25 steps since 17.5 s; the ETA says when more exactly than the speed: 25 * 126.3 * 60 / 4975 = 38.08 s.
    assert at(trace, 25)["step_time_s"] == pytest.approx((38.08 - 17.5) / 25, abs=0.001)
    assert at(trace, 500)["step_time_s"] == pytest.approx((480.9 - 38.08) / 475, abs=0.001)


def test_a_mean_since_the_start_is_undone(log: Path) -> None:
    trace = read(log, owner_log(STORY, 5000, step_s=story_step_s))
    steps, times_s = trace.series("step_time_s")
    early = [time_s for step, time_s in zip(steps, times_s, strict=True) if 100 < step < 450]
    late = [time_s for step, time_s in zip(steps, times_s, strict=True) if 1600 < step < 1950]
    assert early
    assert late
    assert all(time_s == pytest.approx(1 / 1.05, rel=0.1) for time_s in early)
    assert all(time_s == pytest.approx(1 / 0.62, rel=0.1) for time_s in late)


def test_a_resumed_logs_mean_counts_from_its_own_first_step(log: Path) -> None:
    rows = [(1500, 3.5, 3.6, 1e-5), (2000, 3.4, 3.5, 1e-5), (2500, 3.4, 3.5, 1e-5)]
    trace = read(log, owner_log(rows, 3500, step_s=lambda step: 1.0))
    steps, times_s = trace.series("step_time_s")
    usual = [time_s for step, time_s in zip(steps, times_s, strict=True) if step not in (2000, 2500)]
    assert all(time_s == pytest.approx(1.0, rel=0.1) for time_s in usual)


def test_the_speed_of_the_moment_is_taken_as_it_is(log: Path) -> None:
    speeds = [1.0, 1.1, 1.0, 0.5, 0.5, 0.5, 1.0, 1.05, 1.0, 0.9] * 3
    text = "".join(f"step {100 * (n + 1)}/9000 | {speed:.2f} steps/sec\n" for n, speed in enumerate(speeds))
    trace = read(log, text)
    assert trace.announced["printed_speed"] == "momentary"
    assert trace.step_time_s == tuple(1 / speed for speed in speeds)


def test_the_lines_of_make_train(log: Path) -> None:
    trace = read(log, "step 100/2000 (5.0%) | grad norm 1.2345 | loss 6.1234\nstep 100/2000 (5.0%) | 9.80 steps/sec\n")
    assert trace.steps == (100,)
    assert at(trace, 100)["grad_norm"] == 1.2345
    assert at(trace, 100)["train_loss"] == 6.1234


def test_colours_prefixes_other_orders_and_more_columns(log: Path) -> None:
    trace = read(
        log,
        b"2025-01-01 12:00:00,123 INFO [train] \x1b[32mStep 1,000 / 20,000\x1b[0m | "
        b"lr=1.00e-04 | loss=3.21 | grad_norm=0.5\r\n"
        b"2025-01-01 12:01:40,123 INFO [train] Val Loss: 3.40 (best 3.11) | Step: 1,100 of 20,000 | "
        b"mem 3.1GB | loss: 3.20\r\n"
        b"2025-01-01 12:03:20,123 INFO caf\xe9 step=1200 loss=inf, val_loss nan, "
        b"best val loss 3.1, loss scale 65536\r\n",
    )
    assert trace.total_steps == 20_000
    assert at(trace, 1000) == {"train_loss": 3.21, "grad_norm": 0.5, "learning_rate": 1e-4}
    assert at(trace, 1100) == {"train_loss": 3.20, "val_loss": 3.40, "step_time_s": 1.0}
    assert math.isinf(at(trace, 1200)["train_loss"] or 0)
    assert math.isnan(at(trace, 1200)["val_loss"] or 0)


def test_numbers_cut_short_are_left_out(log: Path) -> None:
    whole = owner_log(STORY, 5000)
    lines = whole.splitlines()
    cut = next(index for index, line in enumerate(lines) if line.startswith("step 1000/5000"))
    lines[cut] = lines[cut].partition("e-05")[0] + "e"
    last = next(index for index, line in enumerate(lines) if line.startswith("step 2500/5000"))
    trace = read(log, "\n".join([*lines[:last], "step 2500/5000 (50.0%): train loss 6.6"]))
    assert at(trace, 1000)["train_loss"] == 6.5811
    assert "learning_rate" not in at(trace, 1000)
    assert 2500 not in trace.steps or "train_loss" not in at(trace, 2500)
    (note,) = trace.notes
    assert note.startswith("the last line has no line end")


def test_a_line_cut_inside_the_log_loses_only_what_touches_its_end(log: Path) -> None:
    rows = "".join(f"step {step}: loss 3.2{step}, lr 1e-4 | ok\n" for step in range(10, 20))
    trace = read(log, rows + "step 20: loss 3.220, lr 1\nstep 21: loss 3.221, lr 1e-4 | ok\n")
    assert at(trace, 20) == {"train_loss": 3.220}
    assert at(trace, 21) == {"train_loss": 3.221, "learning_rate": 1e-4}


def test_nanogpt(log: Path) -> None:
    trace = read(
        log,
        "step 0: train loss 10.9882, val loss 10.9898\niter 0: loss 10.9886, time 12345.56ms, mfu -100.00%\n"
        "iter 10: loss 9.9000, time 200.10ms, mfu 12.00%\nstep 20: train loss 9.4000, val loss 9.5000\n"
        "saving checkpoint to out\niter 20: loss 9.5123, time 201.00ms, mfu 12.00%\n",
    )
    assert trace.steps == (0, 10, 20)
    assert trace.train_loss == (10.9882, 9.9, 9.4)
    assert trace.val_loss == (10.9898, None, 9.5)
    assert trace.step_time_s == pytest.approx((12.34556, 0.2001, 0.201))


def test_a_trainers_dicts_take_their_steps_from_the_runs_length(log: Path) -> None:
    trace = read(
        log,
        "{'loss': 6.9, 'grad_norm': 1.2, 'learning_rate': 2e-05, 'epoch': 0.1}\n"
        "{'loss': '6.5', 'grad_norm': '1.1', 'learning_rate': '1e-05', 'epoch': '0.2'}\n"
        "{'eval_loss': 6.4, 'eval_runtime': 12.3, 'eval_steps_per_second': 1.3, 'epoch': 0.2}\n"
        "{'train_runtime': 120.0, 'train_samples_per_second': 80, 'train_steps_per_second': 10.0, "
        "'train_loss': 6.2, 'epoch': 0.2}\n",
    )
    assert trace.steps == (600, 1200)
    assert trace.train_loss == (6.9, 6.5)
    assert trace.val_loss == (None, 6.4)
    assert trace.grad_norm == (1.2, 1.1)
    assert trace.total_steps == 1200


def test_a_trainers_dicts_without_a_length_are_counted(log: Path) -> None:
    trace = read(log, "{'loss': 6.9, 'epoch': 0.1}\n{'loss': 6.5, 'epoch': 0.2}\n{'eval_loss': 6.4, 'epoch': 0.2}\n")
    assert trace.steps == (1, 2)
    assert trace.val_loss == (None, 6.4)
    assert trace.notes == ("the log names no steps: rows are counted instead",)
    assert trace.unit == "row"


def test_bars_give_steps_and_times_and_those_of_evaluations_do_not(log: Path) -> None:
    trace = read(
        log,
        "  0%|          | 0/1500 [00:00<?, ?it/s]\r 10%|# | 150/1500 [02:30<22:30,  1.00it/s]\r"
        "{'loss': 6.9, 'learning_rate': 2e-05, 'epoch': 0.1}\n"
        " 20%|## | 300/1500 [05:00<20:30,  1.00it/s]\r{'loss': 6.2, 'learning_rate': 2e-05, 'epoch': 0.2}\r\n"
        "  0%|   | 0/12 [00:00<?, ?it/s]\r 50%|###   | 6/12 [00:01<00:01,  5.00it/s]\r"
        "{'eval_loss': 6.4, 'epoch': 0.2}\n",
    )
    assert trace.total_steps == 1500
    assert at(trace, 150) == {"train_loss": 6.9, "learning_rate": 2e-5, "step_time_s": 1.0}
    assert at(trace, 300) == {"train_loss": 6.2, "val_loss": 6.4, "learning_rate": 2e-5, "step_time_s": 1.0}


def test_a_dict_written_over_a_bar_is_of_the_step_that_is_drawn_behind_it(log: Path) -> None:
    # A bar is redrawn every tenth of a second, so two dicts may stand over one; behind each it is drawn again.
    def bar(step: int) -> str:
        return f"\r {10 * step}%|#   | {step}/10 [00:0{step}<00:09,  1.00it/s]"

    text = bar(0)
    for step in range(1, 11):
        loss = f"{{'loss': '3.{step:02d}', 'learning_rate': '1e-05', 'epoch': '0.1'}}\n"
        text += f"\r{' ' * 40}\r{loss}\n{bar(step)}" + ("" if step % 2 else bar(step))
        if step % 5 == 0:
            text += f"\r100%|####| 4/4 [00:00<00:00, 44.00it/s]\x1b[A\n\r{' ' * 40}\r"
            text += f"{{'eval_loss': '3.5{step:02d}', 'epoch': '0.1'}}\n\r100%|##| 4/4 [00:00<00:00]\x1b[A{bar(step)}"
    # What keeps output as lines, Jupyter and Docker among them, turns the carriage returns into line ends.
    for kept in (text, text.replace("\r", "\n")):
        trace = read(log, kept)
        assert trace.series("train_loss") == (list(range(1, 11)), [round(3 + step / 100, 2) for step in range(1, 11)])
        assert trace.series("val_loss") == ([5, 10], [3.505, 3.51])


def test_steps_counted_anew_in_each_epoch_go_on(log: Path) -> None:
    trace = read(
        log,
        "Epoch 1/2\nstep 100/200 loss 3.2\nstep 200/200 loss 3.1\n"
        "Epoch 2/2\nstep 100/200 loss 3.0\nstep 200/200 loss 2.9\n",
    )
    assert trace.steps == (100, 200, 300, 400)
    assert trace.restarts == ()


def test_a_restart_replaces_what_it_passes_again(log: Path) -> None:
    trace = read(
        log,
        "step 0 loss 4.0\nstep 100 loss 3.5\nstep 200 loss 3.4\nstep 300 loss 3.3\n"
        "step 200 loss 9.9\nstep 250 loss 9.8\nstep 400 loss 9.7\n",
    )
    assert trace.steps == (0, 100, 200, 250, 400)
    assert trace.train_loss == (4.0, 3.5, 9.9, 9.8, 9.7)
    assert trace.restarts == (200,)
    assert trace.earlier_runs == ()


def test_a_run_from_the_start_is_another_run(log: Path) -> None:
    trace = read(log, "step 0 loss 4.0\nstep 100 loss nan\nstep 200 loss nan\nstep 0 loss 4.0\nstep 100 loss 3.0\n")
    assert trace.steps == (0, 100)
    assert trace.train_loss == (4.0, 3.0)
    (earlier,) = trace.earlier_runs
    assert earlier.steps == (0, 100, 200)


def test_one_line_that_names_an_old_step_is_no_restart(log: Path) -> None:
    trace = read(log, "step 100 loss 3.5\nstep 200 loss 3.4\nbest: step 100 loss 3.3\nstep 300 loss 3.2\n")
    assert trace.steps == (100, 200, 300)
    assert trace.train_loss == (3.5, 3.4, 3.2)


def test_the_lines_around_the_table_say_how_it_was_set_up(log: Path) -> None:
    trace = read(
        log,
        "Loading pretrained gpt2\nvocab_size: 50,257\nlr_schedule: cosine\nwarmup_steps=500\ndtype: torch.bfloat16\n"
        "Total optimization steps = 5,000\nstep 1 loss 4.0\nstep 2 loss 3.9\n",
    )
    wanted = {
        "pretrained": "yes",
        "vocab_size": "50257",
        "lr_schedule": "cosine",
        "warmup_steps": "500",
        "precision": "bf16",
        "total_steps": "5000",
    }
    assert wanted.items() <= trace.announced.items()
    assert trace.total_steps == 5000


def test_a_setting_that_is_left_open_says_nothing(log: Path) -> None:
    settings = (
        "max_steps=-1\nwarmup: -1\nlr: -1\nadapter: null\nfinetune: off\nresume: ''\nNot resuming\nbase_model: null\n"
    )
    trace = read(log, settings + "step 10 loss 4.0\nstep 20 loss 3.9\n")
    assert trace.announced == {"printed_speed": "momentary"}
    assert trace.notes == ()


def test_an_object_without_a_step_or_a_loss_is_the_configuration(log: Path) -> None:
    config = (
        '{"base_model": "llama", "learning_rate": 0.0002, "lr_scheduler": "cosine", "resume_from_checkpoint": null}'
    )
    trace = read(log, config + "\nstep 10 loss 4.0\nstep 20 loss 3.9\n")
    assert {"learning_rate": "0.0002", "lr_schedule": "cosine", "pretrained": "yes"}.items() <= trace.announced.items()
    assert "resumed" not in trace.announced


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: data.decode().encode("utf-16")])
def test_packed_and_wide_files(log: Path, pack: "object") -> None:
    assert callable(pack)
    trace = read(log, pack(owner_log(STORY, 5000).encode()))
    assert trace.series("val_loss")[0] == [row[0] for row in STORY]


def test_a_gz_cut_short_is_read_as_far_as_it_goes(log: Path) -> None:
    # Numbers without a pattern, so that what is packed is long.
    rows = "".join(f"step {step}: loss {3 + step * 7919 % 9973 / 9973:.4f} | ok\n" for step in range(8000))
    packed = gzip.compress(rows.encode())
    trace = read(log, packed[: len(packed) // 2])
    assert 1000 < len(trace.steps) < 8000
    assert "read only in part" in trace.notes[0]


@pytest.mark.parametrize("text", ["", "hello\nworld\n", "\x00\x01\x02" * 1000, "epoch of steps and losses\n"])
def test_what_is_no_log_is_refused_with_an_example(log: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"has no line of a training log.*for example: step 500/5000"):
        read(log, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_training_log(tmp_path / "absent.log")


def test_of_a_long_log_an_even_part_is_kept_and_every_evaluation(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "MAX_ROWS", 2000)
    count = 12_000
    with log.open("w") as file:
        for step in range(count):
            if step % 100 == 0:
                file.write(f"step {step}: train loss 3.5000, val loss 3.6000\n")
            else:
                loss = {7777: "nan", 8888: "Infinity"}.get(step, "3.5000")
                file.write(f"iter {step}: loss {loss}, time 20.00ms\n")
    trace = read_training_log(log)
    assert 1000 < len(trace.steps) < 4000
    assert trace.notes == ("a long log: of lines without a validation loss about one in 8 was read",)
    assert trace.series("val_loss")[0] == list(range(0, count, 100))
    assert math.isnan(at(trace, 7777)["train_loss"] or 0)
    assert at(trace, 8888)["train_loss"] == math.inf
    thirds = [sum(third * count // 3 <= step < (third + 1) * count // 3 for step in trace.steps) for third in range(3)]
    assert max(thirds) < 1.1 * min(thirds)


def test_evaluation_time_is_not_the_steps(log: Path) -> None:
    trace = read(log, owner_log([(0, 4.0, 4.0, 1e-5), (500, 3.9, 3.9, 1e-5)], 500, step_s=lambda step: 1.0))
    steps, times_s = trace.series("step_time_s")
    assert times_s[-1] == pytest.approx(1.0 + EVALUATION_S / (steps[-1] - steps[-2]), rel=0.02)
    assert all(time_s == pytest.approx(1.0, rel=0.1) for time_s in times_s[:-1])


def counts(trace: RunTrace) -> tuple[int, int]:
    return len(trace.series("train_loss")[0]), len(trace.series("val_loss")[0])


@pytest.mark.parametrize(("name", "text", "wanted"), CONSOLES)
def test_other_trainers_rows_are_all_read(tmp_path: Path, name: str, text: str, wanted: tuple[int, int]) -> None:
    (tmp_path / name).write_text(text)
    trace = read_training_log(tmp_path / name)
    assert counts(trace) == wanted
    assert trace.unit == "step"
    assert trace.restarts == ()


@pytest.mark.parametrize("text", [NEOX, OLMO, COMPOSER])
def test_what_several_lines_say_of_one_step_is_one_row(log: Path, text: str) -> None:
    trace = read(log, text)
    assert set(trace.learning_rate) <= {4e-4, 6e-4}
    assert trace.steps == tuple(range(1, 21))
    assert all(5 < loss < 10 for loss in trace.series("train_loss")[1])


def test_a_second_trainer_without_steps_is_told_and_is_no_configuration(log: Path) -> None:
    run = (
        "".join(f"{{'loss': 3.{row}, 'learning_rate': {row}e-06, 'epoch': {row / 10}}}\n" for row in range(11, 31))
        + "{'train_runtime': 30.0, 'train_steps_per_second': 2.0, 'epoch': 3.0}\n"
    )
    trace = read(log, run + run)
    assert counts(trace) == (20, 0)
    assert "learning_rate" not in trace.announced
    assert any("another one begins" in note for note in trace.notes)


@pytest.mark.parametrize("nothing", ["nan", "0", "-1"])
def test_what_stands_for_no_evaluation_is_none(log: Path, nothing: str) -> None:
    rows = (f"{step},3.5,{nothing if step % 10 else 3.6}\n" for step in range(60))
    trace = read(log, "step,train_loss,val_loss\n" + "".join(rows))
    assert trace.series("val_loss") == ([0, 10, 20, 30, 40, 50], [3.6] * 6)
    rows = (f"{step},nan,3.6\n" if step % 10 == 0 else f"{step},3.5,\n" for step in range(60))
    trace = read(log, "step,train_loss,val_loss\n" + "".join(rows))
    assert (counts(trace), set(trace.train_loss)) == ((54, 6), {None, 3.5})
    # Beside a validation loss that each row repeats it is the run's.
    rows = (f"{step},{3.5 if step < 55 else 'nan'},{3.6 - step // 10 / 10}\n" for step in range(60))
    trace = read(log, "step,train_loss,val_loss\n" + "".join(rows))
    assert [str(loss) for loss in trace.train_loss[-6:]] == ["3.5", *["nan"] * 5]


def test_a_table_that_pandas_prints_has_a_number_before_each_row(log: Path) -> None:
    rows = (f"{row:<4} {10 * row:>5}      {3.5 - row / 100:.4f}    NaN\n" for row in range(20))
    trace = read(log, "      step  train_loss  val_loss\n" + "".join(rows))
    assert trace.steps[-1] == 190
    assert trace.train_loss[-1] == 3.31


@pytest.mark.parametrize("loss", ["3.9", "nan", "inf"])
def test_an_evaluation_that_two_lines_say_is_one(log: Path, loss: str) -> None:
    steps = (f"step {step}: train loss 3.2, val loss {loss}\nstep {step} | val loss {loss}\n" for step in range(9))
    trace = read(log, "".join(steps))
    assert (trace.steps, trace.restarts, trace.earlier_runs) == (tuple(range(9)), (), ())


def test_losses_in_bits_are_shown_in_nats(log: Path) -> None:
    rows = [
        f'2022-05-01 10:00:00 | INFO | train_inner | {{"epoch": 1, "update": 0.1, "loss": "{bits}", '
        f'"ppl": "{2**bits:.2f}", "num_updates": "{step}", "lr": "5e-04", "gnorm": "0.91"}}\n'
        for step, bits in ((100, 11.2), (200, 9.5), (300, 8.1))
    ]
    trace = read(log, "".join(rows))
    assert trace.steps == (100, 200, 300)
    assert trace.train_loss == pytest.approx([bits * math.log(2) for bits in (11.2, 9.5, 8.1)])
    assert "in bits" in trace.notes[0]
    (table := log.with_name("ppl.csv")).write_text(PERPLEXITY)
    assert read_training_log(table).train_loss[0] == pytest.approx(math.log(210.5))


def test_bits_per_byte_alone_are_shown_in_nats_per_byte(log: Path) -> None:
    trace = read(log, BITS)
    assert trace.train_loss[0] == pytest.approx(1.01 * math.log(2))
    assert "nats per byte" in trace.notes[0]
    # Beside a loss they say the same in another unit.
    trace = read(log, BITS.replace("| lr", "| loss 3.30 | lr"))
    assert set(trace.train_loss) == {3.30}
    assert trace.val_loss[-1] == pytest.approx(1.205 * 3.30 / 1.01)


def test_nanochats_bits_are_shown_in_nats_per_token_by_the_first_training_loss(log: Path) -> None:
    lines = (
        f"Step {step:05d} | Validation bpb: {3 - step / 10:.6f}\n"
        f"step {step:05d}/00020 (1.00%) | loss: {10 - step / 4:.6f} | lrm: 1.00 | dt: 512.33ms | tok/sec: 1,023,221\n"
        for step in range(0, 20, 5)
    )
    trace = read(log, "".join(lines) + "Minimum validation bpb: 1.234567\n")
    assert trace.train_loss == (10, 8.75, 7.5, 6.25)
    assert trace.val_loss == pytest.approx([10 / 3 * bits for bits in (3, 2.5, 2, 1.5)])


@pytest.mark.parametrize(("name", "nothing"), [("bpb", "0.0000"), ("bpb", "nan"), ("ppl", "nan"), ("ppl", "0.00")])
def test_what_stands_for_no_perplexity_and_no_bits_is_none(log: Path, name: str, nothing: str) -> None:
    rows = (f"step {step} loss 3.5 val_{name} {nothing if step % 10 else 3.6} | ok\n" for step in range(60))
    assert counts(read(log, "".join(rows))) == (60, 6)


@pytest.mark.parametrize(
    "name", ["best val ppl", "best_val_ppl", "min val bpb", "best loss", "minimum validation loss"]
)
def test_the_best_loss_so_far_is_none_of_the_rows(log: Path, name: str) -> None:
    trace = read(log, "".join(f"step {step} | train loss 3.{step} | {name} 2.5 | ok\n" for step in range(10, 30)))
    assert counts(trace) == (20, 0)


def test_a_log_in_capitals_is_read(log: Path) -> None:
    trace = read(log, "".join(f"STEP {step} TRAIN 3.{step} VAL 3.5\n" for step in range(10, 30)))
    assert counts(trace) == (20, 20)


@pytest.mark.parametrize("box", [HEAVY_HEAD, ROUNDED, DOUBLE, SIMPLE, MARKDOWN, HORIZONTALS, ASCII])
def test_a_table_that_is_drawn_is_read_cell_by_cell(log: Path, box: Box) -> None:
    table = Table("step", "train loss", "val loss", "lr", box=box, title="run")
    for step in range(10, 50):
        table.add_row(str(step), f"3.{step}", "" if step % 10 else "3.5", "2e-05")
    with log.open("w") as file:
        Console(file=file, width=80).print(table)
    trace = read_training_log(log)
    assert counts(trace) == (40, 4)
    assert (trace.train_loss[1], set(trace.learning_rate)) == (3.11, {2e-05})


def test_a_loss_that_is_said_to_be_in_bits(log: Path) -> None:
    trace = read(log, "".join(f"step {step} loss 15.{step} bits/token, lr 1e-3\n" for step in range(10, 30)))
    assert trace.train_loss[0] == pytest.approx(15.10 * math.log(2))
    # Here the bits are another number's.
    trace = read(log, "".join(f"step {step} loss 3.{step} bits per byte 1.1 | ok\n" for step in range(10, 30)))
    assert trace.train_loss[0] == 3.10


def test_a_number_of_the_evaluation_makes_no_line_one(log: Path) -> None:
    trace = read(log, "".join(f"step {step} | val acc 0.31 | loss 3.{step} | ok\n" for step in range(10, 30)))
    assert counts(trace) == (20, 0)


def test_a_table_of_columns_apart(log: Path) -> None:
    trace = read(log, FASTAI)
    assert counts(trace) == (20, 20)
    assert trace.unit == "row"
    trace = read(log, "step  loss  notes\nnothing yet\nstep 1 loss 3.1 | ok\nstep 2 loss 3.0 | ok\n")
    assert trace.train_loss == (3.1, 3.0)


def test_a_log_with_decimal_commas_says_the_same(log: Path) -> None:
    text = owner_log(STORY, 5000, step_s=story_step_s)
    points, commas = read(log, text), read(log, re.sub(r"(?<=\d)\.(?=\d)", ",", text))
    assert points.val_loss.count(None) < len(points.val_loss)
    assert commas == points


@pytest.mark.parametrize(
    ("line", "step", "loss", "step_time_s"),
    [
        ("step 1,000: loss 3,2145", 1000, 3.2145, None),
        ("step 1.000/5.000 loss: 3,2145, 1.234,5 ms/it", 1000, 3.2145, 1.2345),
        ("step 1,000 | loss: 3,214 | 1,234 s/it", 1000, 3.214, 1.234),  # as many decimals as thousands have digits
        ('{"step": "1,000", "loss": "3,2145"}', 1000, 3.2145, None),
        ("step 1,000: loss 3.2145, 1,234 ms/it", 1000, 3.2145, 1.234),
        ("2026-01-01 12:00:00,123 step 1,000 (4,12) loss 3.21", 1000, 3.21, None),
        ("step 1,000: loss 1,234.5", 1000, 1234.5, None),
        ("step 10: loss 12,345,678", 10, 12_345_678.0, None),
        ("step 1,000: no loss for 1,024 steps, loss 3.214", 1000, 3.214, None),
        ("step 7 | 0,66 s/it", 7, None, 0.66),
    ],
)
def test_commas_of_decimals_and_of_thousands(
    log: Path, line: str, step: int, loss: float | None, step_time_s: float | None
) -> None:
    # The row before makes a log of a line without a loss.
    trace = read(log, f"step 1: loss 9\n{line}\n")
    assert trace.steps[-1] == step
    assert trace.train_loss[-1] == loss
    row = read_line(with_decimal_points(line.encode())) if step_time_s else None
    assert (row and row.step_time_s) == step_time_s


@pytest.mark.parametrize(
    ("line", "perplexity"),
    [
        ("step 10 | ppl 24,813", 24.813),
        ("step 10: val_perplexity=24,813 | 1,234 s/it", 24.813),
        ("step 10 | ppl 124,8 | lr 3e-4", 124.8),
        ("step 10 | ppl 24,813 | lr 3.0e-4", 24_813.0),
        ("step 1,000 | ppl 24,813", 24_813.0),
        ("step 10 | ppl 24,813.5", 24_813.5),
        ("step 10 | ppl 1,024,813", 1_024_813.0),
    ],
)
def test_a_perplexity_with_a_comma_is_of_thousands_where_its_line_says_so(
    log: Path, line: str, perplexity: float
) -> None:
    trace = read(log, f"step 1: loss 9\n{line}\n")
    losses = [loss for loss in (trace.train_loss[-1], trace.val_loss[-1]) if loss is not None]
    assert losses == [pytest.approx(math.log(perplexity))]


@pytest.mark.parametrize(
    ("said", "train", "val"),
    [
        ("load_balancing_loss: 0.012 | loss: 3.2", 3.2, None),
        ("router_z_loss=0.001 loss=3.2", 3.2, None),
        ("best_val_loss 3.0 val_loss 3.4", None, 3.4),
        ("avg_train_loss 3.2 avg_val_loss 3.4", 3.2, 3.4),
        ("val_avg_loss: 3.4", None, 3.4),
        ("loss[train] 3.2, loss (val): 3.4", 3.2, 3.4),
        ("held-out loss 3.4", None, 3.4),
        ("policy_loss -0.02 value_loss 0.3 loss 0.4", 0.4, None),
        ("train nll 3.2 val nll: 3.4", 3.2, 3.4),
        ("nll_loss=2.9, loss=3.2", 3.2, None),
        ("train/val loss 3.2/3.4", 3.2, 3.4),
        ("Training/Validation Loss: 3.2 / 3.4", 3.2, 3.4),
        ("Loss Train: 3.2, Val: 3.4", 3.2, 3.4),
        ("olmo.train:934 CrossEntropyLoss=3.2", 3.2, None),
        ("loss 3.2 saved as weights-10-val_loss-3.4.h5", 3.2, None),
    ],
)
def test_the_words_around_a_loss_say_which_it_is(said: str, train: float | None, val: float | None) -> None:
    row = read_line(f"step 10 {said}".encode())
    assert row is not None
    assert (row.train_loss, row.val_loss) == (train, val)


@pytest.mark.parametrize(
    "line",
    [
        "validate step: 10  loss:  3.4000  memory: 40.2GiB(50.1%)  tps: 6,432",
        "Validating: step 10 loss 3.4",
        "Evaluated at step 10: loss 3.4",
        "step 10 | Evaluation results: loss = 3.4",
        "validation results at iteration 10 | lm_loss value: 3.4E+00 | lm_loss_ppl value: 2.9E+01 |",
        "validation loss at iteration 10 | LM loss: 3.4E+00 | LM PPL: 2.9E+01",
    ],
)
def test_a_line_of_an_evaluation_has_a_held_out_loss(line: str) -> None:
    row = read_line(line.encode())
    assert row is not None
    assert (row.train_loss, row.val_loss) == (None, 3.4)


def test_the_lines_of_processes_that_are_not_in_step_are_one_run(log: Path) -> None:
    late = random.Random(0).gauss
    lines = sorted((step + abs(late(0, 20)), rank, step) for step in range(0, 1000, 10) for rank in range(4))
    text = "".join(f"{rank}: step {step} loss {4 - step / 1000 + rank / 100:.4f} | ok\n" for _, rank, step in lines)
    trace = read(log, text)
    assert trace.steps == tuple(range(0, 1000, 10))
    assert (trace.restarts, trace.earlier_runs) == ((), ())
    assert any("several processes" in note for note in trace.notes)
    epochs = "".join(f"epoch {epoch} step {step} loss 3.{step} | ok\n" for epoch in range(9) for step in (1, 2, 3))
    assert len(read(log, epochs).steps) == 27
    # Printed every 100 steps and at the epoch's end.
    epochs = "".join(f"epoch {n} step {step}/150 loss 3.{step} | ok\n" for n in range(12) for step in (100, 150))
    assert len(read(log, epochs).steps) == 24


@pytest.mark.parametrize("form", ["state", "list"])
def test_of_a_json_document_that_was_cut_short_what_is_whole_is_read(tmp_path: Path, form: str) -> None:
    history = [{"epoch": step / 90, "loss": 3.9 - step / 100, "step": step} for step in range(10, 100, 10)]
    document = json.dumps({"best_metric": None, "log_history": history} if form == "state" else history, indent=2)
    (tmp_path / "trainer_state.json").write_text(document[: document.index('"step": 80')])
    trace = read_training_log(tmp_path / "trainer_state.json")
    assert trace.steps == tuple(range(10, 71, 10))
    assert trace.train_loss[-1] == 3.2


@pytest.mark.parametrize(
    ("line", "epoch", "step", "total"),
    [
        ("[INFO] Epoch:[1/19](100/24681) loss:3.2 lr:0.0002 epoch_Time:98.0min:", 1, 100, 24681),
        ("01/29 21:35:34 - mmengine - INFO - Iter(train) [ 100/720]  lr: 9.0e-05  loss: 3.2", None, 100, 720),
        ("10/30 22:18:02 - mmengine - INFO - Epoch(train) [1][100/735]  lr: 1.9e-04  loss: 3.2", 1, 100, 735),
        ("Epoch: [1]  [ 100/1299]  eta: 0:00:00  lr: 0.001435  loss: 3.2 (3.1)", 1, 100, 1299),
        (":145 - INFO :: Progress on:train 100it/10.0kit rate:2.0it/s postfix:loss=3.2", None, 100, 10_000),
        ("100/9500 (epoch 1.000), train_loss = 3.2, grad/param norm = 2.9e-02", 1, 100, 9500),
        ("Step... (100 | Loss: 3.2, Learning Rate: 4.5e-05)", None, 100, None),
        ("Epoch [1/3], Loss: 3.2", 1, None, None),
    ],
)
def test_a_step_that_no_word_stands_before(line: str, epoch: int | None, step: int | None, total: int | None) -> None:
    row = read_line(line.encode())
    assert row is not None
    assert (row.epoch, row.step, row.total_steps, row.train_loss) == (epoch, step, total, 3.2)


def test_a_line_without_a_step_takes_no_loss_from_the_line_before(log: Path) -> None:
    trace = read(
        log, "".join(f"step {step} loss 3.25 lr 5e-5\nsaved checkpoint-{step} loss=0.5\n" for step in range(9))
    )
    assert set(trace.train_loss) == {3.25}


def test_what_is_no_number_is_not_read_as_one(log: Path) -> None:
    with pytest.raises(UserError, match="has no line of a training log"):
        read(log, "step 10: loss 3,2145,2\nstep 20: loss 3,2145,1\n")


def test_a_table_with_decimal_commas_in_quotes(tmp_path: Path) -> None:
    rows = "".join(f'"{step},000","3,{step}45"\n' for step in range(1, 9))
    (tmp_path / "metrics.csv").write_text(f"step,train_loss\n{rows}")
    trace = read_training_log(tmp_path / "metrics.csv")
    assert (trace.steps[:2], trace.train_loss[:2]) == ((1000, 2000), (3.145, 3.245))


def test_a_point_is_a_comma_in_half_of_the_world(tmp_path: Path) -> None:
    (tmp_path / "commas.csv").write_text(COMMAS)
    assert read_training_log(tmp_path / "commas.csv").train_loss[0] == 3.410


def test_evaluated_before_training(log: Path) -> None:
    bars = "".join(f"\r{count}/60 [00:0{count // 10}<00:05, 10.42it/s]" for count in range(0, 61, 10))
    trace = read(log, "Loading checkpoint shards: 100%|##| 2/2 [00:05<00:00,  2.51s/it]\n" + bars
                 + "\r{'eval_loss': 3.6012, 'eval_runtime': 5.8}\n" + TRAINER_END)  # fmt: skip
    assert trace.series("val_loss") == ([0], [3.6012])
    assert trace.steps[-1] == 20
    assert "resumed" not in trace.announced


def test_a_run_that_the_log_resumes_is_restarted_there(log: Path) -> None:
    rows = [f"step={step} loss=3.{step}\n" for step in range(10, 30)]
    trace = read(log, "".join(rows[:10]) + "Resuming from checkpoint ckpt/step_19\n" + "".join(rows[10:]))
    assert trace.restarts == (20,)
    assert "resumed" not in trace.announced


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError: CUDA out of memory.",
        "[rank0]: torch.OutOfMemoryError: CUDA out of memory.",
        "OSError: [Errno 28] No space left on device",
        "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
    ],
)
def test_an_error_at_the_end_is_a_note(log: Path, error: str) -> None:
    rows = "".join(f"step {step}/900 loss 3.{step}\n" for step in range(10, 30))
    report = report_of_trace(read(log, f"{rows}Traceback (most recent call last):\n{error}\n"), context=Context())
    assert report.is_healthy
    assert report.notes == (f"the log ends at step 29 with an error: {error}",)


def test_thousand_steps_by_one_letter(log: Path) -> None:
    trace = read(log, SHORT_STEPS)
    assert trace.steps[:2] == (500, 1000)
    assert trace.total_steps == 10_000


def test_each_run_of_a_wandb_export_is_a_run(tmp_path: Path) -> None:
    rows = "".join(f'"{step}","3.{step}","3.0","4.0","2.{step}","2.0","3.0"\n' for step in range(10, 30))
    names = [f"{run} - train/loss{end}" for run in ("a-1", "b-2") for end in ("", "__MIN", "__MAX")]
    (tmp_path / "export.csv").write_text(",".join(f'"{name}"' for name in ["Step", *names]) + "\n" + rows)
    trace = read_training_log(tmp_path / "export.csv")
    (earlier,) = trace.earlier_runs
    assert (earlier.train_loss[0], trace.train_loss[0]) == (3.10, 2.10)
    assert len(earlier.steps) == len(trace.steps) == 20
    assert (earlier.run, trace.run) == ("a-1", "b-2")


def test_a_folder_of_runs_is_the_newest_run(tmp_path: Path) -> None:
    (tmp_path / "search.log").mkdir()
    assert log_in(tmp_path) == tmp_path
    for number, name in enumerate(("version_0/metrics.csv", "version_1/metrics.csv", "other/a.log")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text("step,train_loss\n")
        os.utime(path, (number, number))
    assert log_in(tmp_path) == tmp_path / "version_1" / "metrics.csv"
    assert log_in(tmp_path / "other") == tmp_path / "other" / "a.log"


def test_a_finding_in_a_wandb_export_names_its_run(tmp_path: Path) -> None:
    def loss(run: str, step: int) -> str:
        # The second logs more rarely, from a later step on.
        if run == "b-2":
            return f"{3 - step / 10_000:.4f}" if step % 20 == 10 else ""
        return f"{3 - step / 10_000 if step < 1000 else min(9.0, 3 + (step - 1000) / 100):.4f}"

    header = '"Step","a-1 - train/loss","b-2 - train/loss"\n'
    rows = "".join(f'"{step}","{loss("a-1", step)}","{loss("b-2", step)}"\n' for step in range(0, 2000, 10))
    (tmp_path / "export.csv").write_text(header + rows)
    trace = read_training_log(tmp_path / "export.csv")
    assert (trace.steps[0], len(trace.steps), len(trace.earlier_runs)) == (10, 100, 1)
    report = report_of_trace(trace, context=Context())
    assert report.headline.startswith("In run a-1: the loss diverges")
    assert report.notes[-1].endswith("this is of the last (b-2), earlier ones where they add something")


@pytest.mark.parametrize("end", [100, 103])
def test_a_trainers_mean_over_the_run_is_no_loss_of_its_last_step(tmp_path: Path, end: int) -> None:
    records = [event_record(step, step, {"train/loss": 4.0 - step / 100}) for step in range(10, 101, 10)]
    records += [event_record(end, end, {name: 9.0}) for name in ("train/train_runtime", "train/train_loss")]
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(b"".join(records))
    assert read_training_log(path).series("train_loss")[1][-2:] == pytest.approx([3.1, 3.0])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_event_file_is_read_as_far_as_it_is_whole(tmp_path: Path, damage: str) -> None:
    data = bytearray(b"".join(event_record(step, step / 2, {"loss": 3.0 + step / 100}) for step in range(20)))
    if damage == "cut":
        data = data[:-7]
    else:
        data[-7] ^= 1
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(data)
    trace = read_training_log(path)
    assert counts(trace) == (19, 0)
    assert trace.notes == ("a record of the event file is damaged or cut short: it was left out",)


def test_steps_past_those_that_were_set_are_a_resumed_runs(log: Path) -> None:
    trace = read(log, "TRAINING_STEPS=2000\n" + owner_log([(1500, 3.5, 3.6, 1e-5), (3500, 3.4, 3.5, 1e-5)], 2000))
    assert trace.announced["resumed"] == "yes"
    assert trace.total_steps is None
    assert "past the 2000 that were set: a resumed run" in trace.notes[0]


def test_the_epochs_of_a_trainer_give_steps_where_it_said_how_many(log: Path) -> None:
    # Epochs of two decimals are too coarse: 40 rows have 11 of them.
    rows = "".join(f"{{'loss': 1.{row:02d}, 'epoch': {row / 400:.2f}}}\n" for row in range(1, 41))
    trace = read(log, "Num Epochs = 1 | Total steps = 4,000\n" + rows)
    assert counts(trace) == (40, 0)
    assert trace.unit == "step"
    assert (trace.steps[0], trace.steps[-1]) == (10, 400)


@pytest.mark.parametrize(
    "scalar",
    [
        {"dtype": 1, "float_val": [2.5]},
        {"dtype": 1, "tensor_content": struct.pack("<f", 2.5)},
        {"dtype": 2, "tensor_content": struct.pack("<d", 2.5), "tensor_shape": {"dim": [{"size": 1}]}},
    ],
    ids=["value", "bytes", "double"],
)
def test_scalars_that_tensorflow_2_writes_as_tensors_are_read(tmp_path: Path, scalar: object) -> None:
    pair = {"dtype": 1, "float_val": [1, 2], "tensor_shape": {"dim": [{"size": 2}]}}
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"".join(event_record(step, step, {}, loss=scalar, val_loss=pair) for step in (1, 2, 3)))
    trace = read_training_log(path)
    assert trace.train_loss == (2.5, 2.5, 2.5)
    assert counts(trace) == (3, 0)


def test_litgpts_older_lines_have_a_loss(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    line = "Ep 1 | iter {} | step {}: loss train (curr): {}, val (prev val iter): None | iter time: 298.27 ms\n"
    log.write_text("".join(line.format(4 * n, n, 2 - n / 10) for n in range(1, 6)))
    trace = read_training_log(log)
    assert trace.series("train_loss") == ([1, 2, 3, 4, 5], [1.9, 1.8, 1.7, 1.6, 1.5])
    assert trace.series("val_loss") == ([], [])
    row = read_line(b"iter 20: val loss 1.7258, val time: 3778.02 ms")
    assert row is not None
    assert (row.val_loss, row.step_time_s) == (1.7258, None)
    row = read_line(b"Step 10 loss: 3.2 Iter time (MS): 251.0")
    assert row is not None
    assert row.step_time_s == 0.251
