"""A study as a search leaves it, made from a formula in place of training: for the report's tests and its benchmark."""

import json
import math
import random
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from results.study.folder import Study
from results.study.planned_run import Row
from results.study.tables import METRICS, STEPS, TRIALS, write_table
from spaces.budget import Speeds
from spaces.domains import Choice, active_point
from spaces.overrides import Settings, with_overrides
from spaces.read.load import load_space
from spaces.space import SearchSpace
from tests.rows import trial_row
from trainable.config import TrialConfig
from trainable.schedule import learning_rate_at

START = datetime(2025, 11, 25, 3, 10, tzinfo=UTC)
INITIAL_LOSS = 7.62


def make_report_study(
    folder: Path,
    *,
    trials: int = 24,
    budget_tokens: int = 400_000,
    device_s: float | None = None,
    evaluations: int = 8,
    early_stopping: bool = True,
    document: dict[str, Any] | None = None,
    seed: int = 0,
) -> Study:
    """Return a study of the plateau space in `folder`: trials stopped at rungs, hot ones unstable, some completed."""
    chance = random.Random(seed)
    file = load_space("plateau")
    space = with_overrides(file, Settings(trials=trials, budget_tokens=budget_tokens))
    if device_s is not None:
        # At the speed of the trials: 20,000 tokens a second, and a larger step a little more.
        step_s = {one: one.tokens_per_step / 20_000 / (one.tokens_per_step / 4096) ** 0.15 for one in file.shapes()}
        speeds = Speeds(step_s=step_s, evaluation_s=0.01)
        space = with_overrides(file, Settings(trials=trials, device_s=device_s), speeds=speeds)
    space = replace(space, evaluation=replace(space.evaluation, count=evaluations))
    study = Study(folder)
    (folder / "steps").mkdir(parents=True)
    rows: list[Row] = []
    metrics: list[Row] = []
    rungs: list[list[float]] = [[] for _ in space.rung_tokens()]
    clock = [0.0, 0.0]
    for trial_id in range(trials):
        config = space.config_for(space.baseline_params() if trial_id == 0 else _point(space, chance))
        slot = clock.index(min(clock))
        row, evals = _trial(study, space, config, trial_id, rungs if early_stopping else [], clock[slot], chance)
        clock[slot] += row["active_s"] + 1.0
        rows.append(row)
        metrics += evals
    write_table(study.trials_path, rows, TRIALS)
    write_table(study.metrics_path, metrics, METRICS)
    study.study_json.write_text(json.dumps({**_document(study, space, trials), **(document or {})}), encoding="utf-8")
    return study


def _point(space: SearchSpace, chance: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for parameter in space.parameters:
        domain = parameter.domain
        if isinstance(domain, Choice):
            values[parameter.name] = chance.choice(domain.values)
        elif domain.log:
            values[parameter.name] = math.exp(chance.uniform(math.log(domain.low), math.log(domain.high)))
        else:
            values[parameter.name] = chance.uniform(domain.low, domain.high)
    return active_point(space.parameters, values)


def _trial(
    study: Study,
    space: SearchSpace,
    config: TrialConfig,
    trial_id: int,
    rungs: list[list[float]],
    start_s: float,
    chance: random.Random,
) -> tuple[Row, list[Row]]:
    hot = config.learning_rate > 6e-3 and trial_id > 0
    far = math.log10(config.learning_rate / 2e-3)
    floor = 4.9 + 0.22 * far * far + 0.12 * math.log2(config.batch_size / 8) + chance.gauss(0, 0.03)
    speed = 20_000 * (config.batch_size * config.block_size / 4096) ** 0.15 * chance.uniform(0.9, 1.1)
    status, verdict, rung, last = "completed", None, None, config.training_steps
    blown_at = max(4, round(config.training_steps * 0.06)) if hot else None
    evals = [_evaluation(trial_id, config, 0, floor, speed, blown_at)]
    for tokens, steps in space.milestones(config):
        if steps <= evals[-1]["optimizer_steps"]:
            continue
        if blown_at is not None and steps > blown_at + 6:
            status, last = "unstable", min(config.training_steps, blown_at + 6)
            verdict = f"divergence at step {last}: median of 20 losses 41.3 > best 7.1 + 0.5 for 20 steps"
            break
        evals.append(_evaluation(trial_id, config, steps, floor, speed, blown_at))
        if tokens in space.rung_tokens():
            rung = space.rung_tokens().index(tokens)
            if rungs and trial_id > 0:
                rungs[rung].append(evals[-1]["val_loss"])
                kept = max(1, len(rungs[rung]) // space.scheduler.reduction_factor)
                if sorted(rungs[rung]).index(evals[-1]["val_loss"]) >= kept:
                    status, last = "stopped", steps
                    break
    active_s = last * config.tokens_per_step / speed
    steps_rows = [_step(config, step, floor, blown_at, chance) for step in range(1, last + 1)]
    write_table(study.steps_path(trial_id), steps_rows, STEPS)
    losses = [row["val_loss"] for row in evals]
    row = trial_row(
        trial_id,
        status,
        None if status == "unstable" else losses[-1],
        verdict=verdict,
        **asdict(config),
        best_val_loss=min(losses),
        end_loss=steps_rows[-1]["train_loss"] if status == "unstable" else None,
        tokens_seen=last * config.tokens_per_step,
        optimizer_steps=last,
        active_s=active_s,
        tokens_per_s=speed,
        rung=rung,
        started_at=START + timedelta(seconds=start_s),
        ended_at=START + timedelta(seconds=start_s + active_s),
    )
    return row, evals


def _loss(config: TrialConfig, step: int, floor: float, blown_at: int | None) -> float:
    if blown_at is not None and step > blown_at:
        return INITIAL_LOSS + 6.0 * (step - blown_at)
    tokens = step * config.tokens_per_step
    pace = 60_000 * max(0.4, (2e-3 / config.learning_rate) ** 0.35)
    return max(floor, 3.0) + (INITIAL_LOSS - max(floor, 3.0)) * math.exp(-tokens / pace)


def _evaluation(
    trial_id: int, config: TrialConfig, steps: int, floor: float, speed: float, blown_at: int | None
) -> Row:
    tokens = steps * config.tokens_per_step
    loss = _loss(config, steps, floor, blown_at)
    return {
        "trial_id": trial_id,
        "tokens_seen": tokens,
        "optimizer_steps": steps,
        "val_loss": loss,
        "train_loss": loss - 0.05,
        "grad_norm": None if steps == 0 else 1.0,
        "learning_rate": learning_rate_at(steps, config),
        "tokens_per_s": None if steps == 0 else speed,
        "active_s": tokens / speed,
    }


def _step(config: TrialConfig, step: int, floor: float, blown_at: int | None, chance: random.Random) -> Row:
    loss = _loss(config, step, floor, blown_at) + chance.gauss(0, 0.08)
    hot = blown_at is not None and step > blown_at
    return {
        "optimizer_steps": step,
        "tokens_seen": step * config.tokens_per_step,
        "train_loss": math.inf if hot and step == config.training_steps else loss,
        "grad_norm": math.exp(chance.gauss(0, 0.25)) * (40.0 if hot else 1.4),
        "learning_rate": learning_rate_at(step - 1, config),
        "step_time_s": 0.05,
    }


def _document(study: Study, space: SearchSpace, trials: int) -> dict[str, Any]:
    return {
        "schema_version": 3,
        "name": study.name,
        "kind": "search",
        "created_at": START.isoformat(),
        "model": "tiny",
        "data_source": None,
        "checkpoint_path": None,
        "corpus": {
            "fingerprint": "dc10404e5a6d3777bd0f4a547b9074bc6eb376073095cb3677adc9edfa95c2c2",
            "train_tokens": 563_267,
            "val_tokens": 62_586,
            "vocab_size": 2048,
            "unigram_entropy": 6.357,
        },
        "evaluation": {"block_size": 128, "tokens": 4096, "milestones_tokens": list(space.evaluation_tokens())},
        "device": {
            "type": "cpu", "name": "x86_64", "count": 2, "slots": 2, "threads_per_slot": 1, "gpu_frac": 0
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"},
        "git_commit": "5f4a746512483f77e7f5959d3624a9316b2cfac2",
        "space": {
            "name": space.name,
            "path": "spaces/plateau.toml",
            "description": space.description,
            "toml": Path(__file__).parents[2].joinpath("spaces/plateau.toml").read_text(encoding="utf-8"),
        },
        "budget_tokens": space.budget.tokens,
        "device_time": space.budget.to_json(),
        "rung_tokens": list(space.rung_tokens()),
        "baseline": {"name": space.baseline_name, **asdict(space.baseline)},
        "settings": {"pins": {}, "device_s": space.budget.device_s},
        "trials_planned": trials,
        "searcher": {"name": space.searcher},
        "scheduler": asdict(space.scheduler),
        "stability": {},
        "seed": space.baseline.seed,
    }  # fmt: skip
