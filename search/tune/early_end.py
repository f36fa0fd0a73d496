"""When a search has searched enough: what more trials are likely to gain, against what the evaluation can tell apart.

It knows losses and counts; whose they are, and when they are known, is the searcher's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, median, stdev

from results.study.folder import Study
from results.study.json_documents import read_document, write_document
from search.tune.history import KnownTrial
from trainable.fidelity import objective

FIRST_SHARE = 2 / 3
"""Of the trials run in any case: the sampler learns from few of those before."""
GOOD_OF = 3
"""The best third: about as many as ASHA lets complete."""
FILE_NAME = "part_losses.json"
LAG = 4
"""The end of all numbered so many before it is known when it is decided if a trial is still run."""


@dataclass(frozen=True, kw_only=True)
class EarlyEnd:
    """Why a search ended before its last trial."""

    trials: int
    most_trials: int
    gain_nats: float
    """What the others were likely to gain, nats/token."""
    noise_nats: float
    """Standard error of the difference between the best and another good trial, over the held-out windows."""


def is_early(trials: int, most_trials: int) -> bool:
    """Return whether a search that has begun so many trials goes on whatever they lost."""
    return trials < FIRST_SHARE * most_trials


def early_end(known: Sequence[KnownTrial], *, trials: int, most_trials: int) -> EarlyEnd | None:
    """Return the end of a search that has begun so many trials, None where it goes on.

    known: those of them that have ended, the baseline first.
    """
    if is_early(trials, most_trials) or not known:
        return None
    baseline, *searched = known
    completed = sorted((trial for trial in searched if trial.status == "completed"), key=_loss)
    # Where no trial is stopped, only those that are good say how much better the next ones can be.
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
    """Return how far below `best` so many more trials are expected to get, at most.

    They are taken to come from the normal distribution of the losses: the expected improvement of Bayesian
    optimization (Jones et al. 1998), without a model of the hyperparameters, times their number.
    """
    spread = stdev(losses)
    if spread == 0.0:
        return 0.0
    z = (best - mean(losses)) / spread
    return trials_to_complete * spread * (NormalDist().pdf(z) + z * NormalDist().cdf(z))


def paired_noise(trials: Sequence[KnownTrial]) -> float | None:
    """Return the usual standard error of the first trial's difference from another; None where none is known."""
    best, *others = trials
    errors = [
        stdev(one - other for one, other in zip(best.part_losses, trial.part_losses, strict=True))
        / math.sqrt(len(best.part_losses))
        for trial in others
        if len(trial.part_losses) == len(best.part_losses) > 1
    ]
    return median(errors) if errors else None


def write_part_losses(study: Study, trials: Iterable[KnownTrial]) -> None:
    """Keep in the study what the noise is computed from. Raises OSError."""
    parts = {str(trial.trial_id): list(trial.part_losses) for trial in trials if trial.part_losses}
    write_document(study.path / FILE_NAME, parts)


def read_part_losses(study: Study) -> Mapping[int, tuple[float, ...]]:
    """Return each completed trial's losses by part, none where none were kept. Raises UserError for a damaged file."""

    def parse(document: Mapping[str, Sequence[float]]) -> dict[int, tuple[float, ...]]:
        return {int(number): tuple(map(float, losses)) for number, losses in document.items()}

    return read_document(study.path / FILE_NAME, parse, what="a study's losses by part", again="resume it") or {}
