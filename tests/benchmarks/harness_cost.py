"""What the harness costs beside the training loop, and trials per hour against plain Ray Tune.

`python tests/benchmarks/harness_cost.py [--quick]`: about 12 minutes on two cores, 3 with --quick; one thread a trial.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from rich.console import Console
from rich.table import Table

from results.study.folder import Study, studies_dir
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.options import read_options
from search.setup.inputs import check_inputs, load_inputs
from search.setup.plan import Plan
from search.setup.run_plan import held, run_plan
from search.setup.study_record import study_document
from search.terminal.console import Terminal
from spaces.budget import Budget
from spaces.read.load import load_space
from trainable.config import DOCUMENTED, TrialConfig

PLATEAU = load_space("plateau")
EVALUATIONS, EVAL_TOKENS = len(PLATEAU.evaluation_tokens()), PLATEAU.evaluation.tokens
RESULTS = Path(__file__).parent / "results" / "harness_cost.json"
ALONE = """
import json, sys, time, torch
from dataclasses import asdict
from pathlib import Path
from tests.benchmarks.harness_cost import loaded
from trainable.config import TrialConfig
from trainable.device.device_memory import prepare_memory
from trainable.loop import train
from trainable.run import start_run
torch.set_num_threads(1)
prepare_memory(torch.device("cpu"))
config, milestones = TrialConfig(**json.loads(sys.argv[1])), json.loads(sys.argv[2])
spec = loaded().spec
started = time.perf_counter()
state = start_run(spec, config)
for row in train(state, spec.corpus, spec.protocol, eval_steps={t // config.tokens_per_step for t in milestones}):
    pass
print(time.perf_counter() - started)
"""


def loaded() -> Any:
    """Return the Python language reference and the tiny model, as `make search` loads them."""
    options = read_options([])
    inputs = check_inputs(options, progress=lambda *_: None)
    return load_inputs(inputs, block_size=128, eval_tokens=EVAL_TOKENS, progress=lambda *_: None)


def milestones_tokens(budget_tokens: int) -> tuple[int, ...]:
    """Return where a trial is evaluated."""
    return tuple(budget_tokens * part // EVALUATIONS for part in range(1, EVALUATIONS + 1))


def run_into_a_study(everything: Any, configs: Sequence[TrialConfig], budget_tokens: int, slots_count: int) -> Study:
    """Run the configurations as a study's trials; return it."""
    from search.tune.resources import Slots

    study = Study(studies_dir() / f"bench-{time.monotonic_ns()}")
    asked = {
        "kind": "search",
        "evaluation": {"milestones_tokens": milestones_tokens(budget_tokens)},
        "budget_tokens": budget_tokens,
        "baseline": asdict(configs[0]),
        "seed": configs[0].seed,
        "trials_planned": len(configs),
    }
    plan = Plan(
        study=study,
        is_new=True,
        document=study_document(study.name, asked, loaded=everything, slots={"slots": slots_count}),
        loaded=everything,
        slots=Slots(count=slots_count, threads=1, gpu_frac=0),
        baseline=configs[0],
        budget=Budget(tokens=budget_tokens),
        milestones_tokens=milestones_tokens(budget_tokens),
    )
    runs = [PlannedRun(trial_id=i, config=config, purpose="search") for i, config in enumerate(configs)]
    with held(plan):
        run_plan(plan, Terminal(as_json=True), ledger=Ledger(study), runs=runs)
    return study


def seconds(start: datetime, end: datetime) -> float:
    """Return the seconds between two of a table's times."""
    difference_s: float = (end - start).total_seconds()
    return difference_s


def alone_s(config: TrialConfig, budget_tokens: int) -> float:
    """Return the wall time of the loop alone, in a process of its own."""
    words = [json.dumps(asdict(config)), json.dumps(milestones_tokens(budget_tokens))]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    return float(done.stdout)


def inside_and_alone(everything: Any, budget_tokens: int, rounds: int) -> dict[str, Any]:
    """Return how a trial inside a study compares with the loop alone, round by round, and where its time goes."""
    config = Budget(tokens=budget_tokens).sized(replace(DOCUMENTED, learning_rate=1e-3))
    ratios, gaps_s, outside = [], [], []
    for _ in range(rounds):
        alone = alone_s(config, budget_tokens)
        study = run_into_a_study(everything, [replace(config, seed=seed) for seed in range(3)], budget_tokens, 1)
        rows = study.trials()
        walls = [seconds(row["started_at"], row["ended_at"]) for row in rows]
        # The first one of a process pays for its start; the others are what a search consists of.
        ratios += [wall / alone for wall in walls[1:]]
        outside += [1 - row["active_s"] / wall for row, wall in zip(rows[1:], walls[1:], strict=True)]
        gaps_s += [seconds(one["ended_at"], two["started_at"]) for one, two in pairwise(rows)]
        alone = alone_s(config, budget_tokens)
        ratios += [walls[-1] / alone]
    return {
        "trial inside a study / loop alone, wall": spread(ratios),
        "share of a trial's wall time outside steps and evaluations": spread(outside),
        "next trial starts after, s": spread(gaps_s),
    }


def first_step_s() -> float:
    """Return the seconds from the command to the first training step of a search."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["SPACE=smoke", "STUDY=first", "TRIALS=1", f"STUDIES_DIR={folder}"]
        began = datetime.now().astimezone()
        command = [sys.executable, "-m", "search", "run", *words]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        study = Study(Path(folder) / "first")
        row, first = study.trials()[0], study.metrics()[0]
        building_s: float = seconds(row["started_at"], row["ended_at"]) - row["active_s"]
        to_first_step_s: float = seconds(began, row["started_at"]) + building_s + first["active_s"]
        return to_first_step_s


def parts(everything: Any) -> dict[str, Any]:
    """Return what an evaluation, a checkpoint and a ledger write cost, ms, and the evaluations' share of a trial."""
    from datetime import UTC

    from trainable.checkpoint.checkpoint import checkpoint_payload
    from trainable.checkpoint.checkpoint_store import BackgroundSaver, CheckpointStore
    from trainable.evaluation import eval_windows, evaluate
    from trainable.loop import train
    from trainable.rows import MetricsRow, StepRow
    from trainable.run import start_run

    spec, config = everything.spec, Budget(tokens=PLATEAU.budget.tokens).sized(DOCUMENTED)
    state = start_run(spec, config)
    windows = eval_windows(spec.corpus.val, spec.protocol)
    rows = [row for row, _ in zip(train(state, spec.corpus, spec.protocol, eval_steps=()), range(12), strict=False)]
    step_s = statistics.median(row.step_time_s for row in rows if isinstance(row, StepRow))
    evaluation_ms = times_ms(lambda: evaluate(state.model, windows), 5)
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(root=folder, trial_id=0)
        saver = BackgroundSaver(store)
        stalls_ms = []
        for _ in range(5):
            started = time.perf_counter()
            saver.save(state, model_name="tiny", corpus_fingerprint="x")
            stalls_ms.append(1e3 * (time.perf_counter() - started))
            saver.wait()
        whole_ms = times_ms(
            lambda: store.write(checkpoint_payload(state, model_name="tiny", corpus_fingerprint="x")), 5
        )
        (Path(folder) / "steps").mkdir()
        ledger = Ledger(Study(Path(folder)))
        metrics = next(row for row in rows if isinstance(row, MetricsRow))
        for trial_id in range(24):
            ledger.start_trial(
                PlannedRun(trial_id=trial_id, purpose="search", is_baseline=False, config=config),
                started_at=datetime.now(UTC),
            )
            for step in range(EVALUATIONS):
                ledger.add_metrics(trial_id, replace(metrics, optimizer_steps=step), None)

        def flush() -> None:
            ledger.add_metrics(23, metrics, None)
            ledger.flush()

        ledger_ms = times_ms(flush, 9)
    evaluation_s = statistics.median(evaluation_ms) / 1e3
    # The first one looks at the training text too, an eighth as much.
    in_evaluations_s = (EVALUATIONS + 1 + 1 / 8) * evaluation_s
    return {
        "evaluation, ms": spread(evaluation_ms),
        "evaluations' share of a trial of the default space": in_evaluations_s
        / (in_evaluations_s + step_s * config.training_steps),
        "checkpoint: training waits, ms": spread(stalls_ms),
        "checkpoint: written after, ms": spread(whole_ms),
        "ledger write of 24 trials, ms": spread(ledger_ms),
    }


def times_ms(action: Callable[[], Any], count: int) -> list[float]:
    """Return the times of `count` calls after one that is not counted."""
    action()
    found = []
    for _ in range(count):
        started = time.perf_counter()
        action()
        found.append(1e3 * (time.perf_counter() - started))
    return found


def plain_tune_s(everything: Any, configs: Sequence[TrialConfig], budget_tokens: int, naive: bool) -> float:
    """Return the wall time of the same trials by Ray Tune as its documentation shows it: a function, no reuse."""
    import ray
    from ray import tune

    spec = everything.spec

    def trainable(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        trial = TrialConfig(**config["trial"])
        eval_steps = {tokens // trial.tokens_per_step for tokens in milestones_tokens(budget_tokens)}
        if naive:
            from tests.benchmarks.harness_cost import naive_losses

            for loss in naive_losses(spec, trial, eval_steps):
                tune.report({"loss": loss})
            return
        from trainable.loop import train
        from trainable.rows import MetricsRow
        from trainable.run import start_run

        for row in train(start_run(spec, trial), spec.corpus, spec.protocol, eval_steps=eval_steps):
            if isinstance(row, MetricsRow):
                tune.report({"loss": row.val_loss})

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = os.pathsep.join(part for part in sys.path if part)
        root = str(Path(__file__).parents[2])
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": f"{root}{os.pathsep}{path}", "OMP_NUM_THREADS": "1"}},
        )
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"trial": tune.grid_search([asdict(config) for config in configs])},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        ray.shutdown()
        took_s = time.perf_counter() - started
        assert not results.errors
        return took_s


def naive_losses(spec: Any, config: TrialConfig, eval_steps: set[int]) -> Iterator[float]:
    """Train as a first script would and yield validation losses: the model's own loss, AdamW, an item() a step."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from trainable.model.model_names import PRESETS

    torch.manual_seed(config.seed)
    model = GPT2LMHeadModel(GPT2Config(**PRESETS[spec.model_name]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def batch(tokens: Any, size: int) -> torch.Tensor:
        starts = torch.randint(len(tokens) - config.block_size, (size,)).tolist()
        return torch.stack([torch.from_numpy(tokens[at : at + config.block_size].astype(np.int64)) for at in starts])

    for step in range(config.training_steps + 1):
        if step in eval_steps | {0, config.training_steps}:
            model.eval()
            with torch.no_grad():
                # As many tokens as the study's evaluation runs through the model: it scores half of each window.
                batches = [batch(spec.corpus.val, 32) for _ in range(2 * EVAL_TOKENS // (32 * config.block_size))]
                losses = [model(input_ids=ids, labels=ids).loss.item() for ids in batches]
            model.train()
            yield statistics.fmean(losses)
        if step < config.training_steps:
            ids = batch(spec.corpus.train, config.batch_size)
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
            optimizer.step()
            loss.item()


def against_plain_tune(everything: Any, budget_tokens: int, trials: int, rounds: int) -> dict[str, Any]:
    """Return our trials per hour over plain Ray Tune's, with the same loop and with a naive one; two at a time."""
    config = Budget(tokens=budget_tokens).sized(replace(DOCUMENTED, learning_rate=1e-3))
    configs = [replace(config, seed=seed) for seed in range(trials)]
    same, naive, ours_per_hour = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        run_into_a_study(everything, configs, budget_tokens, 2)
        ours = time.perf_counter() - started
        ours_per_hour.append(trials / ours * 3600)
        same.append(plain_tune_s(everything, configs, budget_tokens, naive=False) / ours)
        naive.append(plain_tune_s(everything, configs, budget_tokens, naive=True) / ours)
    return {
        f"trials per hour of {budget_tokens:,} tokens": spread(ours_per_hour),
        "trials per hour / plain Ray Tune around the same loop": spread(same),
        "trials per hour / plain Ray Tune around a naive loop": spread(naive),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "quartiles": [low, high], "count": len(values)}


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter trials, fewer rounds")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDIES_DIR"] = folder
        assert studies_dir() == Path(folder)
        everything = loaded()
        found = {
            "fixed cost to the first training step, preflight included, s": spread(
                [first_step_s() for _ in range(1 if quick else 3)]
            ),
            **parts(everything),
            **inside_and_alone(everything, 40_000 if quick else 150_000, 1 if quick else 3),
            **against_plain_tune(everything, 20_000 if quick else 60_000, 4 if quick else 8, 1 if quick else 2),
        }
    device = everything.device_info
    document = {"command": " ".join(["python", *sys.argv]), "device": device.name, "cores": device.count, **found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    table = Table(title=f"harness on {device.name}, {device.count} cores, torch on one thread a trial")
    for heading in ("what", "median", "quartiles"):
        table.add_column(heading)
    for name, value in found.items():
        if isinstance(value, dict):
            low, high = value["quartiles"]
            table.add_row(name, f"{value['median']:.4g}", f"{low:.4g} to {high:.4g} of {value['count']}")
        else:
            table.add_row(name, f"{value:.4g}", "")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
