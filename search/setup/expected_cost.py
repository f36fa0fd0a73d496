"""The cost of planned runs, for a line before the first of them starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from results.ranking import seconds_a_token
from results.study.folder import Study, list_studies
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
    own = seconds_a_token(plan.study.trials())
    if own is not None:
        return own
    others = (_rate_of(study, like=plan.document) for study in list_studies())
    return next((rate for rate in others if rate is not None), None)


def _rate_of(study: Study, *, like: Mapping[str, Any]) -> float | None:
    try:
        return seconds_a_token(study.trials()) if _is_alike(study.document(), like) else None
    except UserError:
        return None


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    names = ("type", "name", "slots", "threads_per_slot")
    ours, theirs = (document.get("device") or {} for document in (one, other))
    return one.get("model") == other.get("model") and all(ours.get(name) == theirs.get(name) for name in names)
