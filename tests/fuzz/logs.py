"""Short logs in every format that is read, and what can befall a file."""

import gzip
from collections.abc import Callable

from hypothesis import strategies as st

from tests.results.logs.formats import FORMATS
from tests.results.logs.runs import course
from tests.results.owner_log import STORY, falling, owner_log

NANOGPT = "".join(
    f"step {step}: train loss {9 - step / 50:.4f}, val loss {9.1 - step / 50:.4f}\n"
    f"iter {step}: loss {9 - step / 50:.4f}, time {200 + step}.10ms, mfu 12.00%\n"
    for step in range(0, 120, 10)
)
TRAINER = (
    "".join(
        f"{{'loss': {6.9 - epoch / 20}, 'grad_norm': 1.{epoch}, 'learning_rate': 2e-05, 'epoch': 0.{epoch}}}\n"
        f"{{'eval_loss': {6.8 - epoch / 20}, 'eval_runtime': 12.3, 'eval_steps_per_second': 1.3, 'epoch': 0.{epoch}}}\n"
        for epoch in range(1, 9)
    )
    + "{'train_runtime': 120.0, 'train_samples_per_second': 80, 'train_steps_per_second': 10.0, 'epoch': 0.8}\n"
)
BARS = "".join(
    f" {n}%|## | {n * 10}/1000 [{n:02d}:30<12:30,  1.00it/s]\r{{'loss': {7 - n / 50}, 'epoch': 0.{n:02d}}}\n"
    for n in range(1, 30)
)
OURS = "".join(
    f"step {step}/2000 (5.0%) | grad norm 1.2345 | loss {7 - step / 500:.4f}\n"
    f"step {step}/2000 (5.0%) | {9 + step % 7 / 10:.2f} steps/sec\n"
    for step in range(10, 1200, 10)
)
PREFIXED = "".join(
    f"2025-01-01 12:{minute:02d}:00,123 INFO [train] \x1b[32mStep {1000 + minute:,} / 20,000\x1b[0m | lr=1.00e-04 | "
    f"loss={4 - minute / 40} | grad_norm=0.5 | 0.95 s/step\r\n"
    for minute in range(40)
)
EPOCHS = "".join(
    f"Epoch {epoch}/4\n"
    + "".join(f"step {step}/50 loss {5 - epoch / 4} elapsed {step} s\n" for step in range(0, 50, 5))
    for epoch in range(1, 5)
)
SETUP = (
    "Loading pretrained gpt2\nvocab_size: 50,257\nlr_schedule: cosine\nwarmup_steps=500\ndtype: torch.bfloat16\n"
    "Total optimization steps = 5,000\nlearning rate: 1e-4\nbatch_size 8\nblock_size 128\nresuming from 3\n"
)
PLANTED = [write(course(3.9, 3.2, total=600, every=20, eval_every=100)) for write in FORMATS.values()]
LOGS = [
    text.encode()
    for text in (
        owner_log(STORY, 5000, progress_steps=100),
        SETUP + owner_log(falling(9.3, 5.0, total_steps=900), 900),
        NANOGPT,
        TRAINER,
        BARS,
        OURS,
        PREFIXED,
        EPOCHS,
        SETUP,
    )
] + PLANTED

NUMBERS = (
    *(b"nan", b"-inf", b"inf", b"1e999", b"-1e999", b"1e-400", b"0", b"-0.0", b"-1", b"0.0", b"1.2.3", b"1e", b","),
    *(b"9" * 25, b"9" * 400, b"9" * 5000, b"1e308", b"1,000", b"0" * 50 + b"1", b"123456789012345678", b"None"),
)
PIECES = (
    *(
        b"\x00",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1b[31m",
        b"\x1b]0;",
        b"caf\xe9",
        b"\xe2\x80\xa8",
    ),
    *(b"step 5 loss ", b"step -3 loss 2.0\n", b"step 9999999999999999999999 loss 1\n", b"epoch 9", b"epoch nan\n"),
    *(b"val loss 3.2\n", b"best val loss nan\n", b" 10%|# | 150/1500 [02:30<22:30,  1.00it/s]\r", b"ETA: 0.0m"),
    *(b"vocab_size: 0\n", b"vocab_size: 1\n", b"total_steps: 0\n", b"warmup_steps=0\n", b"learning rate: .5\n"),
    *(b"batch_size=0\nblock_size=0\n", b"pretrained: no\n", b"init_from='scratch'\n", b"{'train_runtime': 1.2.3,"),
    *(b"{'train_runtime': 1e9, 'train_steps_per_second': 1.2.3}\n", b"9999-99-99 99:99:99.999999 ", b"grad_norm=nan"),
    *(b"Epoch 99999999999999999999999999\n", b"elapsed 0 s", b"0.00 steps/sec", b"time 0ms", b"dt 0.0 s"),
)
Change = Callable[[bytes], bytes]


def _line_moved(at: int, to: int) -> Change:
    def change(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True) or [b""]
        lines.insert(to % (len(lines) + 1), lines.pop(at % len(lines)))
        return b"".join(lines)

    return change


def _lines_again(at: int, count: int, times: int) -> Change:
    def change(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True) or [b""]
        at_ = at % len(lines)
        return b"".join([*lines[: at_ + count], *lines[at_ : at_ + count] * times, *lines[at_ + count :]])

    return change


def _number_replaced(at: int, put: bytes) -> Change:
    def change(data: bytes) -> bytes:
        starts = [i for i in range(len(data)) if data[i : i + 1].isdigit() and not data[i - 1 : i].isdigit()] or [0]
        start = starts[at % len(starts)]
        end = start
        while end < len(data) and data[end : end + 1] in b"0123456789.e-+":
            end += 1
        return data[:start] + put + data[end:]

    return change


def _spliced(at: int, cut: int, put: bytes) -> Change:
    return lambda data: data[: at % (len(data) + 1)] + put + data[at % (len(data) + 1) + cut :]


places = st.integers(0, 1 << 16)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(_line_moved, places, places),
    st.builds(_lines_again, places, st.integers(1, 20), st.integers(1, 12)),
    st.builds(_number_replaced, places, st.sampled_from(NUMBERS)),
    st.builds(_number_replaced, places, st.sampled_from(NUMBERS)),
    st.builds(_spliced, places, st.integers(0, 200), st.sampled_from(PIECES)),
    st.builds(_spliced, places, st.integers(0, 30), st.binary(max_size=12)),
    st.builds(lambda at: lambda data: data[: at % (len(data) + 1)], places),
    st.builds(
        lambda at: lambda data: data[: at % (len(data) + 1)] + b"x1 " * 30_000 + data[at % (len(data) + 1) :], places
    ),
)


@st.composite
def mutated_logs(draw: st.DrawFn) -> bytes:
    """Return a log with some changes, perhaps packed or recoded and then damaged again."""
    data = draw(st.sampled_from(LOGS))
    for change in draw(st.lists(CHANGES, max_size=6)):
        data = change(data)
    packing = draw(st.sampled_from(["", "", "", "gzip", "utf-16", "crlf"]))
    if packing == "gzip":
        data = gzip.compress(data, mtime=0)
    elif packing == "utf-16":
        data = data.decode("latin-1").encode("utf-16")
    elif packing == "crlf":
        data = data.replace(b"\n", b"\r\n")
    if packing and draw(st.booleans()):
        data = draw(CHANGES)(data)
    return data
