"""The runs that an attribution needs, as rows of a study's table, and their losses. It trains and judges nothing.

Seeds are fresh: never one that the search ran on, for there the winner was lucky, nor a confirmation's, by which it may
have been chosen. An attribution that was begun keeps its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from results.attribution.design import Coalition, Setting, changed_settings, coalitions, combination_text, config_of
from results.ranking import final_loss
from results.study.folder import Study
from results.study.planned_run import PlannedRun, Row, fresh_seeds, has_result, rows_by_config
from results.winner import winner_of
from spaces.budget import Budget
from trainable.config import TrialConfig, config_from, without_seed
from trainable.errors import NothingToDoError, UserError


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which of the changes from one configuration to another did it, at a budget."""

    before_name: str
    after_name: str
    settings: tuple[Setting, ...]
    configs: Mapping[Coalition, TrialConfig]
    """By combination; the first is before any change. Their seed means nothing."""

    @property
    def before(self) -> TrialConfig:
        """The configuration before any change."""
        return self.configs[frozenset()]

    def runs(self, seeds: Sequence[int]) -> dict[tuple[Coalition, int], PlannedRun]:
        """Return a run for each combination and seed; a seed at a time, so that an interruption leaves whole seeds."""
        return {
            (coalition, seed): PlannedRun(
                config=replace(config, seed=seed),
                purpose="attribution",
                combination=combination_text(self.settings, coalition),
            )
            for seed in seeds
            for coalition, config in self.configs.items()
        }

    def seeds(self, trials: Sequence[Row], number: int, *, above: int, taken: Collection[int] = ()) -> list[int]:
        """Return `number` seeds: those that the question was asked on before, then fresh ones above `above`.

        They are more where more have an answer already. taken: seeds of a confirmation, whether it has run on them yet.
        """
        configs, held = self.configs.values(), rows_by_config(trials, "attribution")
        known = {without_seed(config) for config in configs}
        begun = {config.seed for config in held if without_seed(config) in known}
        whole = {s for s in begun if all(has_result(held.get(replace(config, seed=s))) for config in configs)}
        fresh = fresh_seeds(number, above=above, taken={*taken, *(row["seed"] for row in trials)})
        return [*sorted(whole), *sorted(begun - whole), *fresh][: max(number, len(whole))]


def question_of_study(study: Study, budget: Budget) -> Question:
    """Return what separates a study's baseline from its winner. Raises NothingToDoError when nothing does."""
    winner = winner_of(study)
    base, best = winner.baseline, winner.trial
    if base is None or best is None or best["is_baseline"]:
        raise NothingToDoError(f"study {study.name} has no trial better than its baseline: nothing to attribute.")
    return make_question("baseline", config_from(base), winner.name, config_from(best), budget)


def make_question(
    before_name: str, before: TrialConfig, after_name: str, after: TrialConfig, budget: Budget
) -> Question:
    """Return the question. Raises UserError when the two do not differ."""
    settings = changed_settings(before, after)
    if not settings:
        raise UserError(f"{before_name} and {after_name} are the same configuration: nothing to attribute.")
    return Question(
        before_name=before_name,
        after_name=after_name,
        settings=settings,
        configs={c: budget.sized(config_of(before, after, settings, c)) for c in coalitions(len(settings))},
    )


def attribution_losses(
    runs: Mapping[tuple[Coalition, int], PlannedRun], trials: Sequence[Row]
) -> dict[Coalition, dict[int, float | None]]:
    """Return the loss of every run that ended, None where it did not complete; one that failed has not been run."""
    held = rows_by_config(trials, "attribution")
    losses: dict[Coalition, dict[int, float | None]] = {coalition: {} for coalition, _ in runs}
    for (coalition, seed), run in runs.items():
        row = held.get(run.config)
        if has_result(row):
            losses[coalition][seed] = final_loss(row)
    return losses
