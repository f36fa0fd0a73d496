"""The cost of planned runs, for a line before the first of them starts."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from results.ranking import seconds_a_token
from results.study.folder import list_studies
from results.study.planned_run import PlannedRun
from results.words import count_words, duration_words, token_words
from search.setup.plan import Plan
from trainable.errors import UserError


def cost_words(plan: Plan, runs: Sequence[PlannedRun]) -> str:
    """Return the runs, their tokens and about how long they take: 9 runs, 1.35M tokens, 2 at a time: about 6 min."""
    tokens = sum(run.config.training_steps * run.config.tokens_per_step for run in runs)
    words = f"{count_words(len(runs), 'run')}, {token_words(tokens)} tokens, {plan.slots.count} at a time"
    # In rounds: while the last run trains, the other slots wait.
    rounds = -(-len(runs) // plan.slots.count)
    if plan.budget.device_s is not None:
        return f"{words}: about {duration_words(plan.budget.device_s * rounds)}"
    rate = _seconds_a_token(plan)
    if rate is None:
        return f"{words}; how long is known once the first have trained"
    return f"{words}: about {duration_words(tokens / len(runs) * rate * rounds)}"


def _seconds_a_token(plan: Plan) -> float | None:
    """Return the device time of a token: of the study's own runs, else of the newest study like it."""
    rate = seconds_a_token(plan.study.trials())
    for study in list_studies() if rate is None else []:
        with suppress(UserError):  # a damaged study is not asked
            if _is_alike(study.document(), plan.document) and (rate := seconds_a_token(study.trials())) is not None:
                break
    return rate


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    names = ("type", "name", "slots", "threads_per_slot")
    ours, theirs = (document.get("device") or {} for document in (one, other))
    return one.get("model") == other.get("model") and all(ours.get(name) == theirs.get(name) for name in names)
