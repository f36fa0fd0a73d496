"""WARM_START: another study's results for a new study's searcher, and its best points to run first."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from results.ranking import leaderboard, ranked_trials
from results.study.atomic import read_document, value_of
from results.study.folder import Study
from search.tune.history import KnownTrial, WarmStart, known_trials
from spaces.budget import Budget, budget_of
from spaces.domains import active_point
from spaces.optuna_domains import point_of
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import TrialConfig
from trainable.errors import UserError
from trainable.rows import objective

FIRST_POINTS = 3
WARM_START_JSON = "warm_start.json"
"""In a study's folder, made with it: asdict() of its WarmStart, for when it is resumed."""
SAME = ("model", "model_fingerprint", "checkpoint_fingerprint")
SEARCHED_OR_DERIVED = ("training_steps", "warmup_steps", "seed")


def warm_start_from(source: Study, space: SearchSpace, facts: Mapping[str, Any]) -> WarmStart:
    """Return what a search of `space` takes from `source`; facts: Loaded.facts of this study.

    Losses are taken only where model, text, weights and evaluation are the same, and never of a longer run. Raises
    UserError for a source without a loss.
    """
    document, rows = source.document(), ranked_trials(source.trials())
    best = best_trials(source, rows)
    try:
        budget, milestones = budget_of(document), document["evaluation"]["milestones_tokens"]
        known = known_trials(rows, source.metrics(), milestones=lambda config: budget.milestones(config, milestones))
        share = _share_of_budget(budget, space)
        comparable = _same_measure(document, space, facts) and share is not None
    except (KeyError, TypeError):
        raise UserError(f"WARM_START={source.name}: its study.json is not a search's. Name another study.") from None
    configs = {trial.trial_id: trial.config for trial in known}
    points = [_point(space, configs[row["trial_id"]]) for row in best]
    firsts: list[dict[str, Any]] = []
    for point in points:
        if point is not None and point != space.baseline_params() and point not in firsts:
            firsts.append(point)
    told = []
    if share is not None and comparable:
        # A budget of time counts the baseline's tokens, and the other study may have measured another speed of it.
        scale = share * space.budget.tokens / budget.tokens
        told = [_told(trial, space, share, scale) for trial in known if trial.ended]
    return WarmStart(
        source=source.name,
        told=[trial for trial in told if trial is not None],
        first_points=firsts[:FIRST_POINTS] if space.searcher != "grid" else [],
    )


def best_trials(source: Study, trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of the source's trials with a loss, the best first. Raises UserError where there are none."""
    best = [row for row in leaderboard(ranked_trials(trials)) if row["status"] in ("completed", "stopped")]
    if not best:
        raise UserError(f"study {source.name} has no trial with a loss to learn from. Start a new search without it.")
    return best


def _same_measure(document: Mapping[str, Any], space: SearchSpace, facts: Mapping[str, Any]) -> bool:
    evaluation = document["evaluation"]
    return (
        all(document.get(key) == facts.get(key) for key in SAME)
        and document["corpus"]["fingerprint"] == facts["corpus"]["fingerprint"]
        and (evaluation["block_size"], evaluation["tokens"]) == (space.evaluation.block_size, space.evaluation.tokens)
    )


def _share_of_budget(budget: Budget, space: SearchSpace) -> float | None:
    """Return the source's budget as a share of this one; None if it is larger, or one is in tokens and one in time."""
    ours = space.budget
    if (budget.device_s is None) != (ours.device_s is None):
        return None
    share = (budget.device_s or budget.tokens) / (ours.device_s or ours.tokens)
    return share if share <= 1 else None


def _point(space: SearchSpace, config: TrialConfig) -> dict[str, Any] | None:
    """Return the searched part of a configuration as a point of the space; None if it lies outside."""
    values = {**asdict(config), WARMUP_FRAC: config.warmup_steps / config.training_steps}
    point = active_point(space.parameters, values)
    near = point_of(space, config)
    # The warm-up's share was rounded to steps and need not be exact; every other value must be in its domain.
    return near if all(near[name] == value for name, value in point.items() if name != WARMUP_FRAC) else None


def _told(trial: KnownTrial, space: SearchSpace, share: float, scale: float) -> KnownTrial | None:
    point = _point(space, trial.config)
    if point is None:
        return None
    ours = asdict(space.config_for(point))
    if any(value != ours[name] for name, value in asdict(trial.config).items() if name not in SEARCHED_OR_DERIVED):
        return None
    losses = tuple((round(tokens * scale), loss) for tokens, loss in trial.losses)
    told = replace(trial, trial_id=-1 - trial.trial_id, point=point, losses=losses)
    if trial.status == "completed" and trial.val_loss is not None and share < 1:
        last = round(share * space.budget.tokens), objective(trial.val_loss)
        return replace(told, status="stopped", losses=(*losses, last))
    return told


def read_warm_start(study: Study) -> WarmStart | None:
    """Return the study's warm start, if it has one. Raises UserError when the file is damaged."""
    as_warm_start = partial(value_of, WarmStart)
    path = study.path / WARM_START_JSON
    return read_document(path, as_warm_start, what="a study's warm start", again="start a new study")
