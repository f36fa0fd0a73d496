"""Verdicts on candidates against the baseline from fresh seeds: one paired t-test each. It plans and reads nothing.

- Paired, because both runs of a seed have the same weights and batches, whose effect cancels in the difference.
- t, because five pairs are too few for ranks: a signed-rank test on 5 pairs never gets below p = 0.0625. Between two
  equal configurations the difference of a pair is symmetric around 0 however skewed the losses are, and with heavy
  tails the t-test is conservative. Variances are not pooled: one candidate may scatter more than another.
- Bonferroni over the candidates, which are chosen before any loss is seen. Not Holm, whose intervals say no more than
  "not 0"; Bonferroni's agree with its p-values.
- An unstable run is a loss above every number, not a missing one. Where only the candidate was unstable the mean
  difference has no upper bound, so that no other seeds make it "better"; where only the baseline was, it has no lower
  bound, so that the candidate is never "worse". A seed on which both were unstable does not count.
- A difference that is the same on every seed is one measurement, not several: the seeds changed nothing. No spread over
  a few seeds is no evidence of a variance of 0, at which t would be infinite and any difference "proven".
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainable.errors import count_words

Outcome = Literal["better", "worse", "not proven"]

ALPHA = 0.05
"""The chance of any wrong "better" or "worse" over all candidates and all attempts; see attempt_alpha."""

POWER = 0.8
"""The chance with which seeds_needed seeds would prove a difference of the observed size and scatter."""

MAX_SEEDS_NEEDED = 1000
"""A difference that needs more seeds is not worth proving."""

MIN_SEEDS = 2
"""One pair has no scatter."""

ROUNDING_NATS = 1e-6
"""Scatter of a difference that is not the seeds': a loss in fp32 is rounded by up to half of this."""


def attempt_alpha(number: int) -> float:
    """Return the alpha of the number-th attempt: half of what the attempts before it left, ALPHA / 2^number.

    All attempts together spend less than ALPHA, so by Bonferroni the chance of a wrong "better" stays below it however
    often a person confirms again: alpha spending for an unknown number of looks (Lan & DeMets 1983; for hypotheses in
    sequence Foster & Stine 2008). ALPHA / (k (k + 1)) begins with the same half but leaves the second to fourth attempt
    less, and few people make a fifth.
    """
    return ALPHA * 0.5**number


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateVerdict:
    """The result of one candidate against the baseline on fresh seeds."""

    trial_id: int
    outcome: Outcome
    """better or worse only where the interval lies on that side of 0, that is, p_value is below the attempt's alpha."""
    words: str
    """The outcome, the number of seeds and of unstable runs."""
    seeds: int
    """Number of pairs of stable runs."""
    mean_difference: float | None
    """Candidate - baseline over those pairs, nats/token; negative is better. None without a pair."""
    low: float | None
    high: float | None
    """The mean difference's interval, at 1 - the attempt's alpha for all its candidates together and thus at 95 % for
    all attempts together. None: no bound on that side."""
    p_value: float | None
    """Two-sided, times the number of candidates, at most 1; 1 where an unstable run forbids it. None, as is the
    interval, below 2 pairs and where the difference is the same on each."""
    unstable_seeds: tuple[int, ...]
    """Seeds on which the candidate did not complete."""
    baseline_unstable_seeds: tuple[int, ...]
    seeds_needed: int | None
    """About how many pairs the next attempt needs to prove the observed difference. None when proven, or above
    MAX_SEEDS_NEEDED."""


def judge(
    baseline: Mapping[int, float | None],
    candidates: Mapping[int, Mapping[int, float | None]],
    *,
    alpha: float = ALPHA,
    next_alpha: float | None = None,
) -> list[CandidateVerdict]:
    """Return a verdict per candidate, in the order given; losses by seed, in nats/token, None where unstable.

    The chance that any candidate gets a wrong "better" or "worse" is at most `alpha`, for one judgement of fresh seeds:
    adding seeds until the answer pleases would be many. A seed that one side lacks was not run and is left out.
    seeds_needed is for a later judgement at `next_alpha`.
    """
    assert 0.0 < alpha < 1.0, alpha
    number, next_alpha = len(candidates), next_alpha or alpha
    return [_judged(trial_id, baseline, losses, alpha, next_alpha, number) for trial_id, losses in candidates.items()]


def _judged(
    trial_id: int,
    baseline_losses: Mapping[int, float | None],
    candidate_losses: Mapping[int, float | None],
    alpha: float,
    next_alpha: float,
    candidates: int,
) -> CandidateVerdict:
    run = sorted(baseline_losses.keys() & candidate_losses.keys())
    baseline, candidate = stable_losses(baseline_losses), stable_losses(candidate_losses)
    differences = [candidate[seed] - baseline[seed] for seed in run if seed in candidate and seed in baseline]
    unstable = {seed for seed in run if seed not in candidate}
    baseline_unstable = {seed for seed in run if seed not in baseline}
    no_high, no_low = bool(unstable - baseline_unstable), bool(baseline_unstable - unstable)
    mean = statistics.fmean(differences) if differences else None
    low = high = p_value = needed = None
    outcome: Outcome = "not proven"
    half_width = t_half_width(differences, alpha / candidates)
    if mean is not None and half_width is not None:
        p_value = min(1.0, candidates * _p_value(differences))
        low, high = None if no_low else mean - half_width, None if no_high else mean + half_width
        if high is not None and high < 0.0:
            outcome = "better"
        elif low is not None and low > 0.0:
            outcome = "worse"
        elif no_high if mean < 0.0 else no_low:
            p_value = 1.0
        else:
            needed = _seeds_needed(mean, statistics.stdev(differences), next_alpha / candidates)
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


def stable_losses(losses: Mapping[int, float | None]) -> dict[int, float]:
    """Return the losses by seed of the runs that completed with a finite one."""
    return {seed: loss for seed, loss in losses.items() if loss is not None and math.isfinite(loss)}


def t_half_width(values: Sequence[float], alpha: float) -> float | None:
    """Return half the width of the mean's t interval at 1 - alpha; None for values without scatter of their own."""
    # Not scipy.stats, which takes three times as long to import.
    from scipy.special import stdtrit

    if len(values) < MIN_SEEDS or (scatter := statistics.stdev(values)) <= ROUNDING_NATS:
        return None
    # From the lower tail: 1 - alpha of a late attempt rounds to 1.
    return -float(stdtrit(len(values) - 1, alpha / 2.0)) * scatter / math.sqrt(len(values))


def _p_value(values: Sequence[float]) -> float:
    """Return the two-sided p of a t-test of the mean against 0."""
    from scipy.special import stdtr

    standard_error = statistics.stdev(values) / math.sqrt(len(values))
    return 2.0 * float(stdtr(len(values) - 1, -abs(statistics.fmean(values)) / standard_error))


def _seeds_needed(mean: float, scatter: float, alpha: float) -> int | None:
    """Return the pairs at which a two-sided t-test at `alpha` proves `mean` with POWER; None above MAX_SEEDS_NEEDED.

    The power is exact, by the noncentral t (Cohen 1988, sec. 2.3), without the chance of proving the wrong side.
    """
    from scipy.special import nctdtr, stdtrit

    if mean == 0.0:
        return None

    def is_enough(pairs: int) -> bool:
        critical = -stdtrit(pairs - 1, alpha / 2.0)
        return bool(nctdtr(pairs - 1, abs(mean) / scatter * math.sqrt(pairs), critical) <= 1.0 - POWER)

    # From below, and no bisection: far beyond the first number that is enough, nctdtr is NaN in places.
    return next(filter(is_enough, range(MIN_SEEDS, MAX_SEEDS_NEEDED + 1)), None)


def _words(verdict: CandidateVerdict, *, runs: int) -> str:
    text = {"better": "better than the baseline", "worse": "worse than the baseline"}.get(verdict.outcome)
    if text is None:
        text = f"not proven with {count_words(runs, 'seed')}"
        mean = verdict.mean_difference
        side = " to prove it worse" if mean is not None and mean > 0.0 else ""
        if verdict.seeds_needed is not None:
            text += f"; about {verdict.seeds_needed} would be needed{side}"
        elif mean == 0.0:
            text += "; no difference was seen"
        elif verdict.seeds >= MIN_SEEDS and verdict.p_value is None:
            text += "; the difference is the same on each, so that they say no more than one"
        elif verdict.low is not None and verdict.high is not None:
            text += f"; more than {MAX_SEEDS_NEEDED} would be needed{side}"
    # Not "unstable", for a run that ran out of memory did not complete either.
    for who, seeds in (("it", verdict.unstable_seeds), ("the baseline", verdict.baseline_unstable_seeds)):
        if seeds:
            text += f"; {who} did not complete on {len(seeds)} of {runs} seeds"
    return text
