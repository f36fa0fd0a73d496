"""History: the trials that a search knows before it starts, from its own tables and, by WARM_START, another study's."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from pydantic import ConfigDict, with_config

from results.ranking import leaderboard, ranked_trials
from results.study.atomic import read_document, value_of
from results.study.folder import Study, check_has_baseline
from results.winner import is_worse, start_val_loss
from spaces.budget import Budget, Milestones, budget_of
from spaces.domains import active_point
from spaces.optuna_domains import point_of
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import TrialConfig, config_from
from trainable.errors import UserError
from trainable.rows import ENDINGS, TrialStatus, fidelity_tokens, objective

FIRST_POINTS = 3
WARM_START_JSON = "warm_start.json"
"""In a study's folder, made with it: asdict() of its WarmStart, for when it is resumed."""
SAME = ("model", "model_fingerprint", "checkpoint_fingerprint")
SEARCHED_OR_DERIVED = ("training_steps", "warmup_steps", "seed")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A trial as the searcher and the rungs know it."""

    trial_id: int
    status: TrialStatus
    config: TrialConfig
    point: Mapping[str, Any] | None
    """The searcher's proposal; None for a planned run."""
    losses: tuple[tuple[int, float], ...] = ()
    """(fidelity_tokens, objective) of every evaluation before the final one, in order."""
    val_loss: float | None = None
    """Of the last evaluation."""
    part_losses: tuple[float, ...] = ()
    """Of a completed trial: val_loss on equal parts of the held-out windows."""

    @property
    def ended(self) -> bool:
        """Whether the trial has ended; any other goes on from its last checkpoint."""
        return self.status in ENDINGS


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Trials of another study for the searcher. They enter no rung and no table of this study."""

    source: str
    told: Sequence[KnownTrial] = ()
    """Numbered below 0. Only those with comparable losses; those of a smaller budget count as stopped there."""
    first_points: Sequence[Mapping[str, Any]] = ()
    """The source's best as points of this space; they run right after the baseline."""

    def words(self, space: SearchSpace) -> str:
        """Return a line for a person on what a search of the space learns."""
        told, best = len(self.told), min(len(self.first_points), space.trials - 1)
        runs = f"its best {'trial runs' if best == 1 else f'{best} trials run'} after the baseline"
        if space.searcher == "tpe" and told:
            results = f"{told} of its results {'is' if told == 1 else 'are'} told to the searcher"
            return f"learning from study {self.source}: {results}" + (f"; {runs}" if best else "")
        why = "its losses do not compare with this study's"
        if space.searcher != "tpe":
            why = f"a {space.searcher} search learns from no losses"
        if best:
            return f"learning from study {self.source}: {runs}, and that is all, for {why}"
        return f"nothing is learned from study {self.source}: {why}"


def known_trials(
    trials: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    *,
    milestones: Callable[[TrialConfig], Milestones],
    part_losses: Mapping[int, Sequence[float]] = MappingProxyType({}),
) -> list[KnownTrial]:
    """Return the trials of a search's rows, by trial_id. Raises KeyError for rows without a column.

    milestones: of a configuration.
    """
    rows_of = defaultdict[int, list[Mapping[str, Any]]](list)
    for one in metrics:
        rows_of[one["trial_id"]].append(one)
    found = []
    for row in trials:
        config = config_from(row)
        found.append(
            KnownTrial(
                trial_id=row["trial_id"],
                status=row["status"],
                config=config,
                point=json.loads(row["point"]) if row["point"] else None,
                losses=tuple(_losses(row, rows_of[row["trial_id"]], milestones(config))),
                val_loss=row["val_loss"],
                part_losses=tuple(part_losses.get(row["trial_id"], ())),
            )
        )
    return found


def _losses(
    row: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], milestones: Milestones
) -> Iterator[tuple[int, float]]:
    reached = -1
    for one in metrics:
        if one["optimizer_steps"] >= row["training_steps"]:
            # The final evaluation is the trial's value and belongs to no rung.
            return
        tokens = fidelity_tokens(milestones, optimizer_steps=one["optimizer_steps"])
        if tokens > reached:
            reached = tokens
            yield tokens, objective(one["val_loss"])


def warm_start_from(source: Study, space: SearchSpace, facts: Mapping[str, Any]) -> WarmStart:
    """Return what a search of `space` takes from `source`; facts: Loaded.facts of this study.

    Losses are taken only where model, text, weights and evaluation are the same, and never of a longer run. Raises
    UserError for a source without a loss.
    """
    document, rows = source.document(), ranked_trials(source.trials())
    best = best_trials(source, rows)
    budget, milestones = budget_of(document), document["evaluation"]["milestones_tokens"]
    known = known_trials(rows, source.metrics(), milestones=lambda config: budget.milestones(config, milestones))
    share = _share_of_budget(budget, space)
    configs = {trial.trial_id: trial.config for trial in known}
    start = start_val_loss(document)
    # What made the model worse is told to the searcher, and not run again.
    points = [_point(space, configs[row["trial_id"]]) for row in best if not is_worse(row["val_loss"], start)]
    firsts: list[dict[str, Any]] = []
    for point in points:
        if point is not None and point != space.baseline_params() and point not in firsts:
            firsts.append(point)
    told = []
    if share is not None and _same_measure(document, space, facts):
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
    check_has_baseline(source)
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


def read_warm_start(study: Study, space: SearchSpace) -> WarmStart | None:
    """Return the warm start of a search of the space, if it has one. Raises UserError when the file is damaged."""

    def parse(document: Any) -> WarmStart:
        found = value_of(WarmStart, document)
        domains = {one.name: one.domain for one in space.parameters}
        for point in (*found.first_points, *(trial.point or {} for trial in found.told)):
            is_active = active_point(space.parameters, point) == point
            if not (is_active and all(domains[name].contains(value) for name, value in point.items())):
                raise ValueError(f"{point} is no point of the space")
        return found

    return read_document(study.path / WARM_START_JSON, parse, what="a study's warm start", again="start a new study")
