"""TRIALS=auto: a search ends when the expected gain of more trials is below the noise of the evaluation.

The searcher decides which trials are known when.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist, mean, median, stdev

from results.study.atomic import read_document, value_of, write_document
from results.study.folder import Study
from search.tune.history import KnownTrial
from trainable.rows import objective

FIRST_SHARE = 3 / 4
"""Of the trials that always run. With 2/3 replayed searches save 33 % of the trials instead of 25 %, and lose 2.5 % of
the gain instead of 2.0 % in a fine-tune: early on the sampler has learned from few trials and still improves."""
GOOD_OF = 3
"""The best third counts as good: about as many as ASHA lets complete."""
FILE_NAME = "part_losses.json"
LAG = 4
"""A decision before trial n knows how all trials up to n - LAG ended."""


@dataclass(frozen=True, kw_only=True)
class EarlyEnd:
    """Why a search ended before its last trial."""

    trials: int
    most_trials: int
    gain_nats: float
    """Expected gain of the remaining trials, nats/token."""
    noise_nats: float
    """Median standard error of the difference between the best and another good trial, over the held-out windows."""


def is_early(trials: int, most_trials: int) -> bool:
    """Return whether it is too early to end a search that has begun `trials`."""
    return trials < FIRST_SHARE * most_trials


def early_end(known: Sequence[KnownTrial], *, trials: int, most_trials: int) -> EarlyEnd | None:
    """Return the end of a search that has begun `trials`; None if it goes on.

    known: the first of them, all of which have ended; the baseline is at the front.
    """
    if is_early(trials, most_trials) or not known:
        return None
    baseline, *searched = known
    completed = sorted((trial for trial in searched if trial.status == "completed"), key=_loss)
    # Only good trials predict the best of the next ones; without a scheduler bad ones complete as well.
    good = completed[: len(searched) // GOOD_OF]
    if len(good) < 2:
        return None
    gain = expected_gain(
        [_loss(trial) for trial in good],
        best=min(_loss(trial) for trial in (baseline, good[0])),
        trials_to_complete=(most_trials - trials) * len(good) / len(searched),
    )
    noise = paired_noise(good)
    if noise is None or gain >= noise:
        return None
    return EarlyEnd(trials=trials, most_trials=most_trials, gain_nats=gain, noise_nats=noise)


def _loss(trial: KnownTrial) -> float:
    return objective(trial.val_loss)


def expected_gain(losses: Sequence[float], *, best: float, trials_to_complete: float) -> float:
    """Return an upper bound on how far `trials_to_complete` more trials get below `best`, in nats/token.

    It is the expected improvement of Bayesian optimization (Jones et al. 1998) times the number of trials, with each
    loss drawn from the normal distribution of `losses`.
    """
    spread = stdev(losses)
    if spread == 0.0:
        return 0.0
    z = (best - mean(losses)) / spread
    return trials_to_complete * spread * (NormalDist().pdf(z) + z * NormalDist().cdf(z))


def paired_noise(trials: Sequence[KnownTrial]) -> float | None:
    """Return the median standard error of the first trial's differences from the others; None without any."""
    best, *others = trials
    errors = [
        stdev(one - other for one, other in zip(best.part_losses, trial.part_losses, strict=True))
        / math.sqrt(len(best.part_losses))
        for trial in others
        if len(trial.part_losses) == len(best.part_losses) > 1
    ]
    return median(errors) if errors else None


def write_part_losses(study: Study, trials: Iterable[KnownTrial]) -> None:
    """Write the losses by part, from which the noise is computed. Raises OSError."""
    parts = {str(trial.trial_id): list(trial.part_losses) for trial in trials if trial.part_losses}
    write_document(study.path / FILE_NAME, parts)


def read_part_losses(study: Study) -> Mapping[int, tuple[float, ...]]:
    """Return each completed trial's losses by part, as far as they were kept. Raises UserError for a damaged file."""
    parse, again = partial(value_of, dict[int, tuple[float, ...]]), f"run make resume STUDY={study.name}"
    return read_document(study.path / FILE_NAME, parse, what="a study's losses by part", again=again) or {}
