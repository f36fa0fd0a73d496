"""The importance of each searched hyperparameter, by optuna's evaluators, and how each ending was counted."""

import math
import random
import statistics
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from results.ranking import final_loss, leaderboard
from results.report.facts.analysis import Measured, Row
from results.words import label, list_words, percent_words, token_words
from spaces.domains import SearchParameter
from spaces.optuna_domains import distribution_of
from trainable.errors import count_words

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MIN_TRIALS = 10
"""Of fewer trials the evaluators return noise."""
TARGET_TRIALS = 5
"""PED-ANOVA's documentation asks for at least as many trials in the best share."""
MAX_RESAMPLES, MIN_RESAMPLES, MAX_RESAMPLED_TRIALS = 60, 20, 6_000
"""Bootstrap resamples for an interval: the most, the fewest, and about how many trials in all of them together."""
MAX_FOREST_TRIALS = 200
"""fANOVA's time grows with the trials: 7 s for 1,000 on one core."""
_RANKED = ("completed", "stopped", "unstable", "out_of_memory")


def importance(measured: Measured) -> Row:
    """Return each method's shares, or a reason why there are none; PED-ANOVA's sum to 1, fANOVA's to at most 1."""
    searched = [parameter for parameter in measured.parameters if len(parameter.domain.examples()) > 1]
    ranked = [trial for trial in leaderboard(measured.trials) if trial["status"] in _RANKED]
    if len(searched) < 2:
        return {"reason": "fewer than two hyperparameters were searched", "methods": []}
    if len(ranked) < MIN_TRIALS or not any(trial["status"] == "completed" for trial in ranked):
        ranked_words = f"{count_words(len(ranked), 'trial')} that can be ranked"
        return {"reason": f"{ranked_words}; {MIN_TRIALS} are needed, one of them completed", "methods": []}
    methods = [*filter(None, (_ped_anova(measured, ranked, searched), _fanova(measured, searched)))]
    return {"reason": None if methods else "the best trials read none of the searched ones", "methods": methods}


def _ped_anova(measured: Measured, ranked: Sequence[Row], searched: Sequence[SearchParameter]) -> Row | None:
    from optuna.importance import PedAnovaImportanceEvaluator

    # The evaluator only uses which trials are in the best share. So ranks do as well as losses, and stopped and
    # unstable trials, which have no final loss, have a rank too.
    share = min(0.5, max(0.1, TARGET_TRIALS / len(ranked)))
    best = [measured.values(trial) for trial in ranked[: math.ceil(share * len(ranked))]]
    # One value alone looks far from any others: in 62 of 400 draws of pure noise, with 0.74 of the importance.
    few = [parameter.name for parameter in searched if sum(parameter.name in point for point in best) < 2]
    searched = [parameter for parameter in searched if parameter.name not in few]
    if not searched:
        return None
    frozen = _frozen(measured, ranked, [float(place) for place in range(len(ranked))], searched)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    names = [parameter.name for parameter in searched]
    shares = _shares(frozen, evaluator, names)
    chance = random.Random(0)
    resamples = max(MIN_RESAMPLES, min(MAX_RESAMPLES, MAX_RESAMPLED_TRIALS // len(frozen)))
    size = min(len(frozen), MAX_RESAMPLED_TRIALS // resamples)
    resampled = [_shares(chance.choices(frozen, k=size), evaluator, names) for _ in range(resamples)]
    # Twentieths: the first and the last leave out 5 % each.
    parts = {name: statistics.quantiles([again[name] for again in resampled], n=20) for name in names}
    return {
        "name": "PED-ANOVA",
        "trials": len(ranked),
        "words": f"How much each decides whether a trial is among the best {share:.0%} of {len(ranked)}. Completed "
        "trials rank by final loss; then stopped ones, the highest rung first; then unstable and out-of-memory ones; "
        f"failed ones are left out. The whiskers span 90 % of {resamples} resamples of {size} trials."
        + (
            f" Not for {list_words([label(name) for name in few])}, which one of the best reads at most." if few else ""
        ),
        "shares": [
            {"name": name, "share": shares[name], "low": parts[name][0], "high": parts[name][-1]} for name in names
        ],
    }


def _fanova(measured: Measured, searched: Sequence[SearchParameter]) -> Row | None:
    from optuna.importance import FanovaImportanceEvaluator

    tokens, rows = _equal_tokens(measured)
    always = [p for p in searched if all(p.name in measured.values(trial) for trial, _ in rows)]
    if len(rows) < MIN_TRIALS or len(always) < 2:
        return None
    # Evenly spaced, so that the early random trials and the later guided ones both count.
    if len(rows) > MAX_FOREST_TRIALS:
        rows = [rows[len(rows) * k // MAX_FOREST_TRIALS] for k in range(MAX_FOREST_TRIALS)]
    ceiling = measured.loss_limit
    losses = [loss if ceiling is None else min(loss, ceiling) for _, loss in rows]
    # The evaluator weighs even a log range linearly: the last decade of a learning rate would be nine tenths of it.
    frozen = _frozen(measured, [trial for trial, _ in rows], losses, always, log_as_linear=True)
    names = [parameter.name for parameter in always]
    try:
        shares = _importances(frozen, FanovaImportanceEvaluator(seed=0), names)
    except RuntimeError:
        return None  # equal losses, or equal settings: there is no variance to share
    left_out = [label(parameter.name) for parameter in searched if parameter not in always]
    where = "the full budget"
    if tokens < measured.budget.tokens:
        share = f"{percent_words(tokens / measured.budget.tokens)} of the budget"
        where = f"{token_words(tokens)} tokens" if measured.budget.device_s is None else share
    kind = "tokens" if measured.budget.device_s is None else "device time"
    return {
        "name": "fANOVA",
        "trials": len(rows),
        "words": f"The share of the variance of the val loss at {where} each explains alone; the rest is "
        f"interactions. Over the {len(rows)} trials evaluated there: the most {kind} that at least half of the trials "
        f"have seen, so that stopped ones count and all are compared at equal {kind}. "
        + ("The loss of a run that blew up counts as the highest of the others. " if ceiling is not None else "")
        + (f"Not for {list_words(left_out)}, which only some trials read." if left_out else ""),
        "shares": [{"name": name, "share": shares[name], "low": None, "high": None} for name in names],
    }


def _equal_tokens(measured: Measured) -> tuple[int, list[tuple[Row, float]]]:
    best: tuple[int, list[tuple[Row, float]]] = (0, [])
    for tokens in (measured.budget.tokens, *reversed(measured.rung_tokens)):
        at_end = tokens == measured.budget.tokens
        losses = [(t, final_loss(t) if at_end else measured.loss_at(t, tokens)) for t in measured.trials]
        rows = [(trial, loss) for trial, loss in losses if loss is not None]
        if len(rows) > len(best[1]):
            best = tokens, rows
        if 2 * len(rows) >= len(measured.trials) and len(rows) >= MIN_TRIALS:
            break
    return best


def _frozen(
    measured: Measured,
    trials: Sequence[Row],
    values: Sequence[float],
    searched: Sequence[SearchParameter],
    *,
    log_as_linear: bool = False,
) -> "list[FrozenTrial]":
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    distributions: dict[str, Any] = {parameter.name: distribution_of(parameter.domain) for parameter in searched}
    logs = [name for name, known in distributions.items() if log_as_linear and getattr(known, "log", False)]
    for name in logs:
        low, high = distributions[name].low, distributions[name].high
        distributions[name] = FloatDistribution(math.log10(low), math.log10(high))
    found = []
    for trial, value in zip(trials, values, strict=True):
        point = {name: given for name, given in measured.values(trial).items() if name in distributions}
        point.update({name: math.log10(point[name]) for name in logs})
        found.append(create_trial(params=point, distributions={n: distributions[n] for n in point}, value=value))
    return found


def _shares(frozen: "Sequence[FrozenTrial]", evaluator: Any, names: Sequence[str]) -> dict[str, float]:
    found = _importances(frozen, evaluator, names)
    total = sum(found.values())
    return {name: value / total if total > 0 else 1 / len(names) for name, value in found.items()}


def _importances(frozen: "Sequence[FrozenTrial]", evaluator: Any, names: Sequence[str]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns of few trials; the report says how many there are.
        study = optuna.create_study()
        study.add_trials(frozen)
        found = evaluator.evaluate(study)
    return {name: float(found.get(name, 0.0)) for name in names}
