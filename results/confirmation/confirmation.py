"""Fresh seeds, and what they prove of a candidate against the baseline. It plans and judges runs; it trains nothing.

One paired t-test per candidate, Bonferroni over the candidates, chosen before any loss is seen:
- Paired, because a seed's weights and batches are common to both runs and cancel in the difference.
- t, because five pairs are too few for ranks: a signed-rank test on 5 pairs never gets below p = 0.0625. Between two
  equal configurations the difference of a pair is symmetric around 0 however skewed the losses are, and heavy tails
  make the t-test claim less, not more. No variance is pooled: one candidate may scatter more than another.
- Bonferroni and not Holm, because its intervals say the same as its p-values (Holm's own say nothing beyond "not 0").
- An unstable run is a loss above every number, not a missing one. Where the candidate alone was unstable the mean
  difference has no upper bound, so nothing on the other seeds makes it "better"; where the baseline alone was, it has
  no lower bound, so the candidate is never "worse". A seed on which both were unstable says nothing of the difference.
"""

import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any, Literal, get_args

from results.ranking import baseline_trial, leaderboard
from results.study.documents import read_document, write_document
from results.study.folder import Study
from results.words import count_words
from trainable.config import TrialConfig, config_from
from trainable.errors import UserError
from trainable.rows import ENDINGS, TrialStatus

Outcome = Literal["better", "worse", "not proven"]

POWER = 0.8
"""The chance with which seeds_needed seeds would prove a difference of the size and scatter seen."""

MAX_SEEDS_NEEDED = 1000
"""A difference that needs more is not worth proving."""

MIN_SEEDS = 2
"""One pair has no scatter, so it proves nothing."""

MAX_SEEDS = 1000
MAX_TOP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateVerdict:
    """What fresh seeds say of one candidate against the baseline."""

    trial_id: int
    outcome: Outcome
    """better or worse only where the interval lies on that side of 0, which is where p_value is below alpha."""
    words: str
    """For a person: the outcome, how many seeds it rests on, who was unstable."""
    seeds: int
    """Pairs of two stable runs."""
    mean_difference: float | None
    """Candidate - baseline over those pairs, nats/token; negative is better. None without a pair."""
    low: float | None
    high: float | None
    """The mean difference's interval at 1 - alpha, for all candidates at once. None: no bound on that side."""
    p_value: float | None
    """Two-sided, times the number of candidates, at most 1, which it is where instability forbids the claim.
    None below 2 pairs."""
    unstable_seeds: tuple[int, ...]
    """On which the candidate did not complete."""
    baseline_unstable_seeds: tuple[int, ...]
    seeds_needed: int | None
    """Pairs that would prove the difference seen, about. None when proven, or when no number would be sensible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationRun:
    """One run of a trial's configuration on a fresh seed."""

    source_trial_id: int
    """The trial of the search whose configuration it repeats."""
    seed: int
    trial_id: int | None = None
    """Its own row in trials.parquet; None while it is planned only."""
    val_loss: float | None = None
    status: TrialStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """A study's confirmation; confirmation.json."""

    verdicts: tuple[CandidateVerdict, ...]
    """By rank in the search. None before every run has ended: an early look would be one look too many."""
    rank_by_search: tuple[int, ...]
    """The confirmed trials and the baseline, best first."""
    rank_by_confirmation: tuple[int, ...]
    """The same: proven better, then unproven and the baseline, then worse; within these the fewest unstable seeds,
    then the lowest mean difference. Empty as long as verdicts is."""
    runs: tuple[ConfirmationRun, ...]


def plan_confirmation(
    trials: Sequence[dict[str, Any]], *, top: int, seeds: int, study_seed: int, used_seeds: Collection[int]
) -> list[tuple[int, int]]:
    """Return (source trial_id, seed) of every run needed: the baseline and the `top` best trials on each fresh seed.

    Candidates are completed trials of the search, those of seed `study_seed`; one of two equal configurations. The
    seeds are the lowest above study_seed that neither a trial nor `used_seeds` has. By seed, so that an interruption
    leaves whole pairs. Raises UserError when there is nothing to confirm.
    """
    _check_number("TOP", top, 1, MAX_TOP)
    _check_number("SEEDS", seeds, MIN_SEEDS, MAX_SEEDS)
    baseline = baseline_trial(trials)
    if baseline is None:
        raise UserError(
            "the study has no baseline to confirm a trial against. Continue it first: make resume STUDY=..."
        )
    known, candidates = {_configuration(baseline)}, []
    for row in leaderboard(trials):
        if row["status"] != "completed" or row["seed"] != study_seed or not _is_finite(row["val_loss"]):
            continue
        if _configuration(row) not in known:
            known.add(_configuration(row))
            candidates.append(row["trial_id"])
    if not candidates:
        raise UserError("there is nothing to confirm: no trial besides the baseline has completed. Search first.")
    taken = {study_seed, *used_seeds, *(row["seed"] for row in trials)}
    fresh = list(islice((seed for seed in count(study_seed + 1) if seed not in taken), seeds))
    return [(trial_id, seed) for seed in fresh for trial_id in (baseline["trial_id"], *candidates[:top])]


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        why = " One seed has no scatter, so it proves nothing." if name == "SEEDS" and value == 1 else ""
        raise UserError(f"{name}={value}: it must be at least {low} and at most {high}.{why}")


def _configuration(row: Mapping[str, Any]) -> TrialConfig:
    config = config_from(row)
    return replace(config, seed=0, warmup_steps=config.warmup_steps if config.has_warmup else 0)


def confirm(trials: Sequence[dict[str, Any]], runs: Sequence[ConfirmationRun], *, alpha: float = 0.05) -> Confirmation:
    """Return the confirmation as far as `runs` have come.

    A completed run counts with its val_loss; every other ending (unstable, out of memory, failed, stopped) counts as
    an unstable seed.
    """
    losses: dict[int, dict[int, float | None]] = {}
    for run in runs:
        of_source = losses.setdefault(run.source_trial_id, {})
        assert run.seed not in of_source, f"trial {run.source_trial_id} has two runs on seed {run.seed}"
        of_source[run.seed] = run.val_loss if run.status == "completed" else None
    rows = [row for row in trials if row["trial_id"] in losses]
    order = [row["trial_id"] for row in leaderboard(rows)]
    baseline_id = next(row["trial_id"] for row in rows if row["is_baseline"])
    ended = bool(runs) and all(run.status in ENDINGS for run in runs)
    candidates = {trial_id: losses[trial_id] for trial_id in order if trial_id != baseline_id}
    verdicts = judge(losses[baseline_id], candidates, alpha=alpha) if ended else []
    return Confirmation(
        verdicts=tuple(verdicts),
        rank_by_search=tuple(order),
        rank_by_confirmation=_rank(baseline_id, verdicts),
        # A diverged run's last loss may be infinite, which JSON cannot hold.
        runs=tuple(run if _is_finite(run.val_loss) else replace(run, val_loss=None) for run in runs),
    )


def _rank(baseline_id: int, verdicts: Sequence[CandidateVerdict]) -> tuple[int, ...]:
    if not verdicts:
        return ()
    places: dict[int, tuple[int, int, float]] = {
        baseline_id: (1, len(verdicts[0].baseline_unstable_seeds), 0.0),
    }
    for verdict in verdicts:
        group = ("better", "not proven", "worse").index(verdict.outcome)
        mean = math.inf if verdict.mean_difference is None else verdict.mean_difference
        places[verdict.trial_id] = (group, len(verdict.unstable_seeds), mean)
    return tuple(sorted(places, key=lambda trial_id: (places[trial_id], trial_id)))


def proven_trial_id(confirmation: Confirmation | None) -> int | None:
    """Return the trial that is proven better than the baseline by the most, or None."""
    if confirmation is None:
        return None
    better = {verdict.trial_id for verdict in confirmation.verdicts if verdict.outcome == "better"}
    return next((trial_id for trial_id in confirmation.rank_by_confirmation if trial_id in better), None)


def judge(
    baseline: Mapping[int, float | None],
    candidates: Mapping[int, Mapping[int, float | None]],
    *,
    alpha: float = 0.05,
) -> list[CandidateVerdict]:
    """Return a verdict per candidate, in the order given; losses by seed, in nats/token, None where unstable.

    With a chance of at most `alpha`, any candidate at all gets a wrong "better" or "worse". That holds for one
    judgement of fresh seeds: to add seeds until the answer pleases is to ask again and again. A seed that one side
    lacks as a key was not run and is left out.
    """
    assert 0.0 < alpha < 1.0, alpha
    return [_judged(trial_id, baseline, losses, alpha, len(candidates)) for trial_id, losses in candidates.items()]


def _judged(
    trial_id: int,
    baseline_losses: Mapping[int, float | None],
    candidate_losses: Mapping[int, float | None],
    alpha: float,
    candidates: int,
) -> CandidateVerdict:
    run = sorted(baseline_losses.keys() & candidate_losses.keys())
    baseline, candidate = _stable(baseline_losses), _stable(candidate_losses)
    differences = [candidate[seed] - baseline[seed] for seed in run if seed in candidate and seed in baseline]
    unstable = {seed for seed in run if seed not in candidate}
    baseline_unstable = {seed for seed in run if seed not in baseline}
    no_high, no_low = bool(unstable - baseline_unstable), bool(baseline_unstable - unstable)
    mean = statistics.fmean(differences) if differences else None
    low = high = p_value = needed = None
    outcome: Outcome = "not proven"
    if mean is not None and len(differences) >= MIN_SEEDS:
        half_width, p_value = _paired_t(differences, alpha, candidates)
        low, high = None if no_low else mean - half_width, None if no_high else mean + half_width
        if high is not None and high < 0.0:
            outcome = "better"
        elif low is not None and low > 0.0:
            outcome = "worse"
        elif no_high if mean < 0.0 else no_low:
            p_value = 1.0
        else:
            needed = _seeds_needed(mean, statistics.stdev(differences), alpha / candidates)
    verdict = CandidateVerdict(
        trial_id=trial_id,
        outcome=outcome,
        words="",
        seeds=len(differences),
        mean_difference=mean,
        low=low,
        high=high,
        p_value=p_value,
        unstable_seeds=tuple(sorted(unstable)),
        baseline_unstable_seeds=tuple(sorted(baseline_unstable)),
        seeds_needed=needed,
    )
    return replace(verdict, words=_words(verdict, runs=len(run)))


def _stable(losses: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if loss is not None and math.isfinite(loss)}


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _paired_t(differences: Sequence[float], alpha: float, candidates: int) -> tuple[float, float]:
    """Return half the width of the mean's interval at 1 - alpha / candidates, and p times candidates (at most 1)."""
    # Not scipy.stats: it takes three times as long to import, and its ttest_1samp warns on equal differences.
    from scipy.special import stdtr, stdtrit

    degrees = len(differences) - 1
    mean, scatter = statistics.fmean(differences), statistics.stdev(differences)
    standard_error = scatter / math.sqrt(len(differences))
    half_width = float(stdtrit(degrees, 1.0 - alpha / candidates / 2.0)) * standard_error
    if standard_error == 0.0:
        return half_width, 0.0 if mean else 1.0
    return half_width, min(1.0, 2.0 * candidates * float(stdtr(degrees, -abs(mean) / standard_error)))


def _seeds_needed(mean: float, scatter: float, alpha: float) -> int | None:
    """Return the pairs at which a two-sided t-test at `alpha` proves `mean` with POWER; None above MAX_SEEDS_NEEDED.

    The exact power, by the noncentral t (Cohen 1988, sec. 2.3); the chance of proving the wrong side is left out.
    """
    from scipy.special import nctdtr, stdtrit

    if mean == 0.0 or scatter == 0.0:
        return None

    def is_enough(pairs: int) -> bool:
        critical = stdtrit(pairs - 1, 1.0 - alpha / 2.0)
        return bool(nctdtr(pairs - 1, abs(mean) / scatter * math.sqrt(pairs), critical) <= 1.0 - POWER)

    # The power only grows with the pairs.
    pairs = bisect_left(range(MAX_SEEDS_NEEDED + 1), True, lo=MIN_SEEDS, key=is_enough)
    return pairs if pairs <= MAX_SEEDS_NEEDED else None


def _words(verdict: CandidateVerdict, *, runs: int) -> str:
    text = {"better": "better than the baseline", "worse": "worse than the baseline"}.get(verdict.outcome)
    if text is None:
        text = f"not proven with {count_words(verdict.seeds, 'seed')}"
        mean = verdict.mean_difference
        side = " to prove it worse" if mean is not None and mean > 0.0 else ""
        if verdict.seeds_needed is not None:
            text += f"; about {verdict.seeds_needed} would be needed{side}"
        elif mean == 0.0:
            text += "; no difference was seen"
        elif verdict.low is not None and verdict.high is not None:
            text += f"; more than {MAX_SEEDS_NEEDED} would be needed{side}"
    for who, seeds in (("", verdict.unstable_seeds), ("the baseline was ", verdict.baseline_unstable_seeds)):
        if seeds:
            text += f"; {who}unstable on {len(seeds)} of {runs} seeds"
    return text


def to_json(confirmation: Confirmation) -> dict[str, Any]:
    """Return the confirmation as JSON's types."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(confirmation), allow_nan=False))
    return document


def from_json(document: Mapping[str, Any]) -> Confirmation:
    """Return the confirmation that to_json made. Raises KeyError, TypeError or ValueError for anything else."""
    verdicts = [CandidateVerdict(**_with_tuples(entry)) for entry in document["verdicts"]]
    for verdict in verdicts:
        if verdict.outcome not in get_args(Outcome):
            raise ValueError(f"there is no outcome {verdict.outcome!r}")
    return Confirmation(
        verdicts=tuple(verdicts),
        rank_by_search=tuple(document["rank_by_search"]),
        rank_by_confirmation=tuple(document["rank_by_confirmation"]),
        runs=tuple(ConfirmationRun(**entry) for entry in document["runs"]),
    )


def _with_tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def write_confirmation(study: Study, confirmation: Confirmation) -> None:
    """Write the study's confirmation.json. Raises OSError."""
    write_document(study.path / "confirmation.json", to_json(confirmation))


def load_confirmation(study: Study) -> Confirmation | None:
    """Return the study's confirmation, None when it has none. Raises UserError when its file is damaged."""
    return read_document(study.path / "confirmation.json", from_json, what="a confirmation", again="confirm")
