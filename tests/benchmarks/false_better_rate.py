"""How often a confirmation calls one of several equal configurations better than the baseline: at most 5 % is promised.

A study of equal configurations is simulated: a search of 24 trials on one seed, its best confirmed on 5 fresh seeds, by
the project's own plan and judgement; only the losses are drawn. Run it with

    python tests/benchmarks/false_better_rate.py [--studies 200] [--seed 0]
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from results.confirmation.attempt import Attempt, judged, plan_attempt, planned_runs
from results.confirmation.paired_t import ALPHA, attempt_alpha, judge
from trainable.config import DOCUMENTED
from trainable.rows import TrialStatus

Draw = Callable[[np.random.Generator], float]
"""One run's own noise, mean 0, in units of its standard deviation where it has one."""

TRIALS, SEEDS, STUDY_SEED = 24, 5, 7
SEED_SD, RUN_SD = 0.03, 0.02
"""Nats/token: what a seed does to every run on it, and what each run has for itself."""


def normal(rng: np.random.Generator) -> float:
    """Return a standard normal number."""
    return float(rng.standard_normal())


def heavy_tails(rng: np.random.Generator) -> float:
    """Return a number of Student's t with 3 degrees of freedom."""
    return float(rng.standard_t(3))


def skewed(rng: np.random.Generator) -> float:
    """Return a log-normal number less its mean: most runs a little better, a few much worse."""
    return float(rng.lognormal(0.0, 1.0) - np.exp(0.5))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How losses are drawn and how many trials are confirmed."""

    name: str
    noise: Draw = normal
    top: int = 2
    seeds: int = SEEDS
    unstable_frac: float = 0.0
    """Of all runs on fresh seeds, whoever they belong to."""
    candidate_scale: float = 1.0
    """Times RUN_SD for all but the baseline."""
    gain: float = 0.0
    """By which one of the trials is truly better, nats/token; 0 when all are equal."""


EQUAL = (
    Scenario(name="normal noise, 2 confirmed"),
    Scenario(name="normal noise, 5 confirmed", top=5),
    Scenario(name="heavy tails (t, 3 df)", noise=heavy_tails),
    Scenario(name="skewed (log-normal)", noise=skewed),
    Scenario(name="candidates 3 x noisier", candidate_scale=3.0),
    Scenario(name="1 run in 10 unstable", unstable_frac=0.1),
    Scenario(name="normal noise, 2 seeds only", seeds=2),
)
"""Of none of these may the rate be above 5 %."""


def simulate(rng: np.random.Generator, scenario: Scenario) -> tuple[list[dict[str, Any]], Attempt]:
    """Return the trials of one simulated search, the baseline being trial 0, and its first confirmation.

    With a gain, trial 1 is the better one.
    """
    seed_effects: dict[int, float] = {}

    def loss(trial_id: int, seed: int) -> float:
        common = seed_effects.setdefault(seed, SEED_SD * normal(rng))
        scale = scenario.candidate_scale if trial_id else 1.0
        return 4.5 + common + scale * RUN_SD * scenario.noise(rng) - (scenario.gain if trial_id == 1 else 0.0)

    def row(trial_id: int) -> dict[str, Any]:
        values = {**asdict(DOCUMENTED), "learning_rate": 1e-5 * (1 + trial_id), "seed": STUDY_SEED}
        belongs = {"trial_id": trial_id, "is_baseline": trial_id == 0, "purpose": "search"}
        return {**belongs, **values, "status": "completed", "val_loss": loss(trial_id, STUDY_SEED), "rung": None}

    trials = [row(trial_id) for trial_id in range(TRIALS)]
    attempt = plan_attempt(trials, (), study="one", top=scenario.top, seeds=scenario.seeds)
    rows = []
    for number, run in enumerate(planned_runs(attempt, trials)):
        assert run.of_trial is not None
        status: TrialStatus = "unstable" if rng.random() < scenario.unstable_frac else "completed"
        val_loss = loss(run.of_trial, run.config.seed)
        columns = replace(run, trial_id=TRIALS + number).columns()
        rows.append({**columns, "status": status, "val_loss": val_loss})
    return trials, judged(attempt, [*trials, *rows])


def false_better_count(studies: int, scenario: Scenario, seed: int) -> tuple[int, int]:
    """Return in how many studies a candidate came out better, and in how many the search alone would have said so."""
    rng = np.random.default_rng(seed)
    by_confirmation = by_search = 0
    for _ in range(studies):
        trials, attempt = simulate(rng, scenario)
        by_confirmation += any(verdict.outcome == "better" for verdict in attempt.verdicts)
        by_search += min(trials, key=lambda row: row["val_loss"])["trial_id"] != 0
    return by_confirmation, by_search


def found_count(studies: int, scenario: Scenario, seed: int) -> int:
    """Return in how many studies the better trial was both chosen by the search and proven better."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(studies):
        _, attempt = simulate(rng, scenario)
        found += any(verdict.trial_id == 1 and verdict.outcome == "better" for verdict in attempt.verdicts)
    return found


def repeated_count(studies: int, attempts: int, seed: int, *, top: int = 2, divided: bool = True) -> tuple[int, int]:
    """Return in how many studies the first attempt says better, and in how many any of the attempts does.

    Each is `top` equal candidates on SEEDS fresh seeds, by the paired t-test of judge (tests hold the two equal), all
    at once. divided: each attempt at its own share of ALPHA, as the product does, else each at all of it.
    """
    rng = np.random.default_rng(seed)
    losses = SEED_SD * rng.standard_normal((studies, attempts, 1, SEEDS))
    losses = losses + RUN_SD * rng.standard_normal((studies, attempts, top + 1, SEEDS))
    differences = losses[:, :, 1:] - losses[:, :, :1]
    mean, error = differences.mean(axis=-1), differences.std(axis=-1, ddof=1) / SEEDS**0.5
    alphas = np.array([attempt_alpha(number) if divided else ALPHA for number in range(1, attempts + 1)])
    critical = stdtrit(SEEDS - 1, 1 - alphas / top / 2)
    better = (mean + critical[:, None] * error < 0).any(axis=-1)
    return int(better[:, 0].sum()), int(better.any(axis=1).sum())


def looks_count(studies: int, looks: int, seed: int) -> int:
    """Return in how many studies one of several looks says better, when 5 seeds are added until it does: a misuse."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(studies):
        baseline: dict[int, float | None] = {}
        candidates: dict[int, dict[int, float | None]] = {1: {}, 2: {}}
        for look in range(1, looks + 1):
            for new in range(SEEDS * (look - 1), SEEDS * look):
                baseline[new] = RUN_SD * normal(rng)
                for losses in candidates.values():
                    losses[new] = RUN_SD * normal(rng)
            if any(verdict.outcome == "better" for verdict in judge(baseline, candidates)):
                found += 1
                break
    return found


def _share(count: int, studies: int) -> str:
    from scipy.stats import binomtest

    interval = binomtest(count, studies).proportion_ci(0.95)
    return f"{100 * count / studies:5.1f} % [{100 * interval.low:4.1f}, {100 * interval.high:4.1f}]"


def _lines(studies: int, seed: int) -> Iterable[str]:
    yield f"{studies} studies of {TRIALS} equal configurations, best confirmed on {SEEDS} fresh seeds; 95 % intervals"
    yield f"{'':30}{'a false better':>22}{'the search alone':>24}"
    for scenario in EQUAL:
        count, by_search = false_better_count(studies, scenario, seed)
        yield f"{scenario.name:30}{_share(count, studies):>22}{_share(by_search, studies):>24}"
    once, ever = repeated_count(20 * studies, 5, seed)
    yield f"{'five attempts in a row, the first':30}{_share(once, 20 * studies):>22}"
    yield f"{'five attempts in a row, any':30}{_share(ever, 20 * studies):>22}"
    yield f"{'misuse: 5 looks, 5 to 25 seeds':30}{_share(looks_count(studies, 5, seed), studies):>22}"
    yield f"one trial truly better, in units of the pairs' scatter ({RUN_SD * 2**0.5:.4f} nats/token): found and proven"
    for units in (1.0, 2.0, 3.0, 4.0):
        scenario = Scenario(name=f"{units:g}", gain=units * RUN_SD * 2**0.5)
        yield f"{scenario.name:30}{_share(found_count(studies, scenario, seed), studies):>22}"


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for line in _lines(arguments.studies, arguments.seed):
        print(line)


if __name__ == "__main__":
    main()
