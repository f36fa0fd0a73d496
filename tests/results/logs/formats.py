"""Logs of one run in the formats of nine trainers, written from a table of rows; none is copied from a real run."""

import csv
import io
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


@dataclass(frozen=True, kw_only=True)
class Row:
    step: int
    train: float | None = None
    val: float | None = None
    rate: float | None = None
    norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    rows: Sequence[Row]
    total_steps: int
    header: str = ""
    """Lines of the configuration, for formats that have room for them."""


def nanogpt(run: Run) -> bytes:
    lines = [run.header, "tokens per iteration will be: 491,520", "number of parameters: 123.59M"]
    for row in run.rows:
        if row.val is not None:
            lines.append(f"step {row.step}: train loss {row.train:.4f}, val loss {row.val:.4f}")
            lines.append("saving checkpoint to out")
        rate = "" if row.rate is None else f", lr {row.rate:.4e}"
        lines.append(f"iter {row.step}: loss {row.train:.4f}, time {251.3 + row.step % 7:.2f}ms, mfu 31.20%{rate}")
    return "\n".join(lines).encode()


def _trainer_dicts(run: Run, *, steps_per_epoch: int) -> list[tuple[Row, str]]:
    said = []
    for row in run.rows:
        epoch = f"'epoch': {row.step / steps_per_epoch:.4g}}}"
        norm = "" if row.norm is None else f"'grad_norm': {row.norm}, "
        rate = "" if row.rate is None else f"'learning_rate': {row.rate}, "
        if row.train is not None:
            said.append((row, f"{{'loss': {row.train:.4f}, {norm}{rate}{epoch}"))
        if row.val is not None:
            times = "'eval_runtime': 2.4, 'eval_samples_per_second': 83.1, 'eval_steps_per_second': 10.4, "
            said.append((row, f"{{'eval_loss': {row.val:.6f}, {times}{epoch}"))
    return said


def trainer_console(run: Run) -> bytes:
    """A Trainer whose bar and dicts share the screen, kept by `tee`."""
    header = (
        f"{run.header}\n***** Running training *****\n  Num examples = 8,000\n  Num Epochs = 4\n"
        f"  Total optimization steps = {run.total_steps:,}\n"
    )
    text = [header]
    for row, said in _trainer_dicts(run, steps_per_epoch=max(1, run.total_steps // 4)):
        percent = 100 * row.step // max(1, run.total_steps)
        seconds = row.step // 2
        clock = f"{seconds // 60:02d}:{seconds % 60:02d}<10:00,  2.00it/s"
        bar = f"\r{percent:3d}%|{'█' * (percent // 10):10s}| {row.step}/{run.total_steps} [{clock}]"
        text.append(f"{bar}\r{' ' * 60}\r{said}\n{bar}")
    return "".join(text).encode()


def trainer_state(run: Run) -> bytes:
    history: list[dict[str, object]] = []
    per_epoch = max(1, run.total_steps // 4)
    for row in run.rows:
        values = {"grad_norm": row.norm, "learning_rate": row.rate, "loss": row.train}
        if row.train is not None:
            history.append(
                {"epoch": row.step / per_epoch, **{k: v for k, v in values.items() if v is not None}, "step": row.step}
            )
        if row.val is not None:
            history.append({"epoch": row.step / per_epoch, "eval_loss": row.val, "eval_runtime": 2.4, "step": row.step})
    state = {
        "best_metric": None, "epoch": 4.0, "eval_steps": 500, "global_step": run.rows[-1].step,
        "is_local_process_zero": True, "log_history": history, "logging_steps": 10, "max_steps": run.total_steps,
        "num_train_epochs": 4, "save_steps": 500, "train_batch_size": 8,
    }  # fmt: skip
    return json.dumps(state, indent=2).encode()


def lightning_csv(run: Run) -> bytes:
    """Lightning's metrics.csv: a line for each that logged, the other cells empty; steps are counted from 0."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["epoch", "lr-AdamW", "step", "train_loss_epoch", "train_loss_step", "val_loss"])
    writer.writeheader()
    for row in run.rows:
        at = {"step": row.step, "epoch": row.step * 4 // max(1, run.total_steps)}
        if row.rate is not None:
            writer.writerow({"lr-AdamW": row.rate, "step": row.step})
        if row.train is not None:
            writer.writerow({**at, "train_loss_step": row.train})
        if row.val is not None:
            writer.writerow({**at, "val_loss": row.val})
    return file.getvalue().encode()


def wandb_csv(run: Run) -> bytes:
    """W&B's export of a panel: each metric with its extremes, quoted."""
    names = ["eager-fox-12 - train/loss", "eager-fox-12 - eval/loss", "eager-fox-12 - train/learning_rate"]
    header = ["Step", *(column for name in names for column in (name, f"{name}__MIN", f"{name}__MAX"))]
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    for row in run.rows:
        cells = [value for value in (row.train, row.val, row.rate) for _ in range(3)]
        writer.writerow([row.step, *("" if value is None else value for value in cells)])
    return file.getvalue().encode()


def event_record(step: int, seconds: float, scalars: Mapping[str, float], **tensors: object) -> bytes:
    event = Event(wall_time=1.7e9 + seconds, step=step)
    for tag, value in scalars.items():
        event.summary.value.add(tag=tag, simple_value=value)
    for tag, tensor in tensors.items():
        event.summary.value.add(tag=tag, tensor=tensor)
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return bytes(length + crcs[0] + data + crcs[1])


def event_file(run: Run) -> bytes:
    """An event for each scalar, as a SummaryWriter writes them."""
    version = Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString()
    length = struct.pack("<Q", len(version))
    records = [length + struct.pack("<I", masked_crc32c(length)) + version + struct.pack("<I", masked_crc32c(version))]
    for row in run.rows:
        values = {"train/loss": row.train, "eval/loss": row.val, "train/learning_rate": row.rate,
                  "train/grad_norm": row.norm, "train/epoch": row.step / max(1, run.total_steps)}  # fmt: skip
        records += [event_record(row.step, row.step / 2, {tag: v}) for tag, v in values.items() if v is not None]
    return b"".join(records)


def mlx_lm(run: Run) -> bytes:
    lines = [
        "Loading pretrained model", "Loading datasets", "Training", "Trainable parameters: 0.102% (1.704M/1671.3M)",
        f"Starting training..., iters: {run.total_steps}",
    ]  # fmt: skip
    for row in run.rows:
        if row.val is not None:
            lines.append(f"Iter {max(1, row.step)}: Val loss {row.val:.3f}, Val took 12.310s")
        if row.train is not None and row.step:
            lines.append(
                f"Iter {row.step}: Train loss {row.train:.3f}, Learning Rate {row.rate or 1e-5:.3e}, It/sec 1.512, "
                f"Tokens/sec 612.118, Trained Tokens {405 * row.step}, Peak mem 6.210 GB"
            )
        if row.step and row.step % 500 == 0:
            lines.append(f"Iter {row.step}: Saved adapter weights to adapters/adapters.safetensors.")
    return "\n".join(lines).encode()


def axolotl(run: Run) -> bytes:
    """Time stamps, ranks and colours around a Trainer's dicts, bars between them, warnings anywhere."""
    text = [
        "[2025-03-02 10:11:12,001] [INFO] [axolotl.cli.load_datasets:61] [PID:812] [RANK:0] loading dataset\n"
        f"[2025-03-02 10:11:14,120] [DEBUG] [axolotl.load_model:902] [PID:812] [RANK:0] \x1b[32mbase_model: "
        f"some/base-1B\x1b[0m\n{run.header}\n"
    ]
    for index, (row, said) in enumerate(_trainer_dicts(run, steps_per_epoch=max(1, run.total_steps // 2))):
        percent = 100 * row.step // max(1, run.total_steps)
        seconds = row.step
        clock = f"{seconds // 3600:d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}<1:10:00,  1.00s/it"
        text.append(f"\r{percent:3d}%|\x1b[34m{'▍' * 3}\x1b[0m     | {row.step}/{run.total_steps} [{clock}]")
        text.append(f"\x1b[A\r{said}\n")
        if index % 5 == 2:
            text.append("/usr/lib/python3/site-packages/torch/utils.py:61: UserWarning: None of the inputs have "
                        "requires_grad=True. Gradients will be None\n  warnings.warn(\n")  # fmt: skip
    return "".join(text).encode()


def unsloth(run: Run) -> bytes:
    """The sloth, then dicts whose only clock is an epoch of two decimals."""
    header = (
        "==((====))==  Unsloth 2025.2.4: Fast Llama patching. Transformers: 4.48.2.\n"
        "   \\\\   /|    GPU: Tesla T4. Max memory: 14.741 GB. Platform: Linux.\n"
        "==((====))==  Unsloth - 2x faster free finetuning | Num GPUs = 1\n"
        "   \\\\   /|    Num examples = 8,000 | Num Epochs = 1\n"
        "O^O/ \\_/ \\    Batch size per device = 2 | Gradient Accumulation steps = 4\n"
        f"\\        /    Total batch size = 8 | Total steps = {run.total_steps}\n"
        ' "-____-"     Number of trainable parameters = 24,313,856\n'
    )
    lines = []
    for row in run.rows:
        epoch = f"'epoch': {row.step / max(1, run.total_steps):.2f}}}"
        if row.train is not None:
            lines.append(
                f"{{'loss': {row.train:.4f}, 'grad_norm': {row.norm or 0.41}, 'learning_rate': {row.rate}, {epoch}"
                if row.rate is not None
                else f"{{'loss': {row.train:.4f}, {epoch}"
            )
        if row.val is not None:
            lines.append(f"{{'eval_loss': {row.val:.4f}, 'eval_runtime': 9.1, {epoch}")
    return (header + "\n".join(lines) + "\n").encode()


FORMATS: dict[str, Callable[[Run], bytes]] = {
    "nanoGPT": nanogpt,
    "Trainer console": trainer_console,
    "trainer_state.json": trainer_state,
    "Lightning metrics.csv": lightning_csv,
    "W&B CSV": wandb_csv,
    "TensorBoard events": event_file,
    "mlx-lm": mlx_lm,
    "axolotl": axolotl,
    "unsloth": unsloth,
}
FINE_TUNES_ONLY = ("mlx-lm", "axolotl", "unsloth")
"""Trainers that begin with pretrained weights always."""


def decimals(value: float) -> float:
    """The value as logs print it."""
    return float("nan") if math.isnan(value) else round(value, 4)
