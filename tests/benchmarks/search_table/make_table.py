"""Train many configurations of the plateau space by this project's own loop and keep their learning curves.

python tests/benchmarks/search_table/make_table.py [COUNT] [--processes N] [--budget-tokens N --batch-divisor N]

It goes on where it was cut off: each configuration is written when it has ended, and number k is always the same one.
By default the budget is a 16th of the space's and the batches are an 8th, so that a configuration has half the steps
it has there: at full size (300,000 tokens, batch divisor 1, into another file) a thousand of them take a day.
"""

import argparse
import io
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from results.study.atomic import write_atomic
from spaces.budget import Budget
from spaces.domains import Choice, FloatRange, points
from spaces.read.load import load_space, space_from_toml
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import TrialConfig

FOLDER = Path(__file__).parent
KINDS = {"fine-tune": "tiny", "scratch": "tiny-scratch"}
BUDGET_TOKENS, BATCH_DIVISOR = 18_750, 8
MARKS = (1 / 27, 1 / 9, 0.112, 1 / 6, 1 / 4, 1 / 3, 0.336, 1 / 2, 2 / 3, 1.0)
"""Shares of the budget after which a configuration is evaluated: the rungs of the schedulers that are compared."""
LONGER, EVERY_LONGER = 3, 31
"""Every 31st configuration runs also with three times the budget."""
EVAL_TOKENS = 1024
STOP_ON = ("nonfinite", "divergence")
"""Not the floor: in so few tokens random weights do not get below the words' frequencies at any rate."""
SEED = 20261129
SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("number", pa.int32()),
        ("budget_tokens", pa.int64()),
        ("batch_size", pa.int32()),
        ("block_size", pa.int32()),
        ("learning_rate", pa.float64()),
        ("lr_schedule", pa.string()),
        ("warmup_frac", pa.float64()),
        ("status", pa.string()),
        ("verdict", pa.string()),
        ("steps", pa.int32()),
        ("eval_steps", pa.list_(pa.int32())),
        ("val_loss", pa.list_(pa.float32())),
        ("step_s", pa.float64()),
        ("eval_s", pa.float64()),
    ]
)
"""A row per run. eval_steps, val_loss: of each evaluation, without the one before the first step. step_s, eval_s: the
median CPU seconds of a step and of an evaluation on one thread."""


def scaled(space: SearchSpace, budget_tokens: int, batch_divisor: int) -> SearchSpace:
    """Return the space with that budget, and with its batches divided."""

    def smaller(values: tuple[Any, ...]) -> Choice:
        assert all(value % batch_divisor == 0 for value in values), (values, batch_divisor)
        return Choice(tuple(value // batch_divisor for value in values))

    frac = space.scheduler.grace_frac
    assert frac is not None
    # An earlier version of this project, replayed as a peer, holds the tokens themselves.
    has_budget = hasattr(space, "budget")
    budget = {"budget": replace(space.budget, tokens=budget_tokens)} if has_budget else {"budget_tokens": budget_tokens}
    return replace(
        space,
        **budget,
        baseline=replace(space.baseline, batch_size=space.baseline.batch_size // batch_divisor),
        parameters=tuple(
            replace(one, domain=smaller(one.domain.examples())) if one.name == "batch_size" else one
            for one in space.parameters
        ),
        scheduler=replace(space.scheduler, grace_tokens=math.ceil(frac * budget_tokens)),
    )


def table_path(budget_tokens: int) -> Path:
    """Return the file of the curves of a budget."""
    return FOLDER / f"curves_{budget_tokens}.parquet"


def read_table(path: Path) -> tuple[list[dict[str, Any]], SearchSpace]:
    """Return the rows, and the space that their configurations were drawn from."""
    table = pq.read_table(path, use_threads=False)
    about = json.loads(table.schema.metadata[b"about"])
    space = space_from_toml(about["space"], name="plateau", path="plateau.toml")
    return table.to_pylist(), scaled(space, about["budget_tokens"], about["batch_divisor"])


def point_at(space: SearchSpace, number: int) -> dict[str, Any]:
    """Return configuration `number` of the space.

    Every combination of the choices comes once before one comes again, each with its rates spread evenly: few
    configurations then leave no gap as random ones would.
    """
    cells = list(points(space.parameters, lambda one: one.domain.values if isinstance(one.domain, Choice) else (None,)))
    order = np.random.default_rng(SEED).permutation(len(cells))
    round_, cell = number // len(cells), int(order[number % len(cells)])
    shifts = np.random.default_rng([SEED, cell]).random(len(space.parameters))
    values = dict(cells[cell])
    for index, parameter in enumerate(space.parameters):
        domain = parameter.domain
        if parameter.name in values and isinstance(domain, FloatRange):
            share = (_van_der_corput(round_, base=2 if domain.log else 3) + shifts[index]) % 1.0
            ends = (math.log(domain.low), math.log(domain.high)) if domain.log else (domain.low, domain.high)
            value = float(ends[0] + share * (ends[1] - ends[0]))
            values[parameter.name] = domain.nearest(math.exp(value) if domain.log else value)
    return values


def _van_der_corput(index: int, base: int) -> float:
    share, digit = 0.0, 1.0 / base
    while index:
        index, rest = divmod(index, base)
        share, digit = share + rest * digit, digit / base
    return share


_specs: dict[str, Any] = {}


def run(kind: str, number: int, config: TrialConfig, warmup_frac: float | None, budget_tokens: int) -> dict[str, Any]:
    """Return the row of a configuration, trained here on one thread."""
    import torch

    from trainable.loop import train
    from trainable.rows import MetricsRow, StepRow, Verdict
    from trainable.run import start_run

    torch.set_num_threads(1)
    spec = _specs.get(kind) or _specs.setdefault(kind, _spec(kind))
    state = start_run(spec, config)
    eval_steps = {int(mark * budget_tokens) // config.tokens_per_step for mark in MARKS} - {0}
    # CPU time, for the machine may be busy with other things.
    times: dict[type, list[float]] = {StepRow: [], MetricsRow: []}
    evaluations: list[tuple[int, float]] = []
    verdict: Verdict | None = None
    last_s = time.process_time()
    rows = train(
        state,
        spec.corpus,
        spec.protocol,
        eval_steps=eval_steps,
        stop_on=STOP_ON,
        start=spec.known_start(config),
    )
    for row in rows:
        now_s = time.process_time()
        if isinstance(row, (StepRow, MetricsRow)):
            times[type(row)].append(now_s - last_s)
        if isinstance(row, MetricsRow) and row.optimizer_steps:
            evaluations.append((row.optimizer_steps, row.val_loss))
        verdict = row if isinstance(row, Verdict) else None
        last_s = now_s
    return {
        **{name: value for name, value in asdict(config).items() if name in SCHEMA.names},
        "kind": kind,
        "number": number,
        "budget_tokens": budget_tokens,
        "warmup_frac": warmup_frac,
        "status": "unstable" if verdict else "completed",
        "verdict": verdict.reason if verdict else None,
        "steps": state.optimizer_steps,
        "eval_steps": [steps for steps, _ in evaluations],
        "val_loss": [loss for _, loss in evaluations],
        "step_s": statistics.median(times[StepRow]),
        "eval_s": statistics.median(times[MetricsRow][1:] or [math.nan]),
    }


def _spec(kind: str) -> Any:
    import torch

    from trainable.data.corpus import source_files
    from trainable.data.tokens import load_corpus
    from trainable.device.device_memory import prepare_memory
    from trainable.evaluation import EvalProtocol
    from trainable.model.models import load_tokenizer
    from trainable.run import RunSpec, with_start

    prepare_memory(torch.device("cpu"))
    files = source_files(None)
    corpus = load_corpus(files, load_tokenizer(KINDS[kind], files))
    spec = RunSpec(
        model_name=KINDS[kind],
        corpus=corpus,
        protocol=EvalProtocol(block_size=128, tokens=EVAL_TOKENS),
        device="cpu",
        unigram_entropy=corpus.unigram_entropy,
    )
    return with_start(spec, TrialConfig())


def jobs(space: SearchSpace, count: int) -> Iterator[tuple[str, int, TrialConfig, float | None, int]]:
    """Yield the runs in the order in which they are wanted: both kinds take turns."""
    for number in range(count):
        point = point_at(space, number)
        for multiple in (1, LONGER) if number % EVERY_LONGER == 0 else (1,):
            budget_tokens = multiple * space.budget.tokens
            config = Budget(tokens=budget_tokens).sized(space.config_for(point))
            for kind in KINDS:
                yield kind, number, config, point.get(WARMUP_FRAC), budget_tokens


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="configurations of each kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget-tokens", type=int, default=BUDGET_TOKENS)
    parser.add_argument("--batch-divisor", type=int, default=BATCH_DIVISOR)
    arguments = parser.parse_args()
    path = table_path(arguments.budget_tokens)
    if path.exists():
        rows, space = read_table(path)
        about = json.loads(pq.read_schema(path).metadata[b"about"])
    else:
        file = load_space("plateau")
        rows, space = [], scaled(file, arguments.budget_tokens, arguments.batch_divisor)
        about = {
            "space": file.toml,
            "budget_tokens": arguments.budget_tokens,
            "batch_divisor": arguments.batch_divisor,
            "eval_tokens": EVAL_TOKENS,
            "made_on": platform.machine(),
        }
    done = {(row["kind"], row["number"], row["budget_tokens"]) for row in rows}
    left = (job for job in jobs(space, arguments.count) if (job[0], job[1], job[4]) not in done)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        running: set[Future[dict[str, Any]]] = set()
        while True:
            while len(running) < arguments.processes and (job := next(left, None)):
                running.add(pool.submit(run, *job))
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            rows += [one.result() for one in ended]
            _write(path, rows, about)
            print(f"{len(rows)} runs", flush=True)


def _write(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    rows.sort(key=lambda row: (row["kind"], row["number"], row["budget_tokens"]))
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"about": json.dumps(about)}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


if __name__ == "__main__":
    main()
