"""The first screen's answer: what won, by how much, and how far to believe it. Pure; it reads no file."""

import math
import shlex
from typing import Any

from results.confirmation.confirmation import CandidateVerdict, Confirmation, proven_trial_id
from results.ranking import baseline_trial, best_trial
from results.report.facts.analysis import Measured, Row, parameter_values
from results.words import STATUS_LABELS, count_words, label, unit
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS, SCHEDULES_WITH_WARMUP

MAX_PERPLEXITY_NATS = 25.0
"""A perplexity beyond e^25 says nothing to anybody."""
_NOT_A_CHANGE = ("training_steps", "seed", "warmup_steps")


def answer_facts(study_name: str, measured: Measured, confirmation: Confirmation | None) -> Row:
    """Return the winner, the baseline, their difference, how far it is proven, and the commands that use the winner.

    The winner is the best on fresh seeds where one was proven better than the baseline, else the search's first.
    """
    trials: dict[int | None, Row] = {trial["trial_id"]: trial for trial in measured.trials}
    best, baseline = best_trial(measured.trials), baseline_trial(measured.trials)
    verdicts = {verdict.trial_id: verdict for verdict in (confirmation.verdicts if confirmation else ())}
    first = confirmation.rank_by_confirmation[0] if confirmation and confirmation.rank_by_confirmation else None
    # As export does, so that the line to copy gives what the page names.
    winner = trials.get(proven_trial_id(confirmation), best)
    goal = measured.final_loss(baseline) if baseline else None
    loss = measured.final_loss(winner) if winner else None
    difference = None if loss is None or goal is None else loss - goal
    verdict = verdicts.get(winner["trial_id"]) if winner else None
    case = _case(measured, winner, goal)
    return {
        "case": case,
        "headline": _headline(case, winner, baseline, difference, verdict),
        "proof": _proof(case, verdict, confirmation),
        "winner": _side(winner, loss),
        "search_best": _side(best, measured.final_loss(best) if best else None),
        "confirmation_best": first,
        "baseline": _side(baseline, goal),
        "val_loss_difference": difference if winner is not None and not winner["is_baseline"] else None,
        "changes": _changes(measured, winner, baseline),
        "export": f'eval "$(make -s export STUDY={shlex.quote(study_name)})" && make train' if winner else None,
    }


def _case(measured: Measured, winner: Row | None, goal: float | None) -> str:
    if not measured.trials:
        return "nothing_started"
    if winner is None:
        return "nothing_completed"
    if winner["is_baseline"]:
        return "baseline_alone" if len(measured.trials) == 1 else "baseline_best"
    return "nothing_to_compare" if goal is None else "beaten"


def _headline(
    case: str, winner: Row | None, baseline: Row | None, difference: float | None, verdict: CandidateVerdict | None
) -> str:
    match case:
        case "nothing_started":
            return "No trial was started"
        case "nothing_completed":
            return "No trial was completed, so there is no best configuration"
        case "baseline_alone":
            return "The baseline alone was run"
        case "baseline_best":
            return "The baseline is the best: no trial beat it"
    assert winner is not None
    name = f"Trial {winner['trial_id']}"
    if case == "nothing_to_compare":
        how = "has not started" if baseline is None else f"did not complete ({STATUS_LABELS[baseline['status']]})"
        return f"{name} is the best; the baseline {how}, so there is nothing to compare it with"
    assert difference is not None
    if verdict is None:
        return f"{name} beat the baseline by {-difference:.4f} nats/token"
    if verdict.outcome == "better":
        by = f" by {-verdict.mean_difference:.4f} nats/token" if verdict.mean_difference is not None else ""
        return f"{name} is better than the baseline{by}"
    if verdict.outcome == "worse":
        return f"{name} came first in the search, and is worse than the baseline on fresh seeds"
    return f"{name} came first in the search; that it is better than the baseline is not proven"


def _proof(case: str, verdict: CandidateVerdict | None, confirmation: Confirmation | None) -> Row:
    """Return the claim's standing: no_claim, not_confirmed, under_way, better, worse or not_proven, and its words."""
    fields = ("mean_difference", "low", "high", "p_value", "seeds", "seeds_needed")
    numbers: dict[str, Any] = {name: None if verdict is None else getattr(verdict, name) for name in fields}
    if case not in ("beaten", "baseline_best"):
        state, words = "no_claim", "no comparison was made"
    elif verdict is not None:
        state = verdict.outcome.replace(" ", "_")
        words = f"proven with {count_words(verdict.seeds, 'seed')}" if state == "better" else verdict.words
        if state == "better" and verdict.unstable_seeds:
            words = verdict.words
    elif confirmation is not None and not confirmation.verdicts:
        ended = sum(run.val_loss is not None or run.status is not None for run in confirmation.runs)
        state = "under_way"
        words = f"confirmation under way: {ended} of {count_words(len(confirmation.runs), 'run')}"
    elif case == "baseline_best":
        state, words = "no_claim", "one seed each, so no claim"
    else:
        state, words = "not_confirmed", "not confirmed yet: one seed each"
    return {"state": state, "words": words, **numbers}


def _side(trial: Row | None, final: float | None) -> Row | None:
    if trial is None:
        return None
    kept = ("trial_id", "is_baseline", "status", "tokens_seen", "optimizer_steps", "active_s", "tokens_per_s")
    return {
        **{name: trial[name] for name in kept},
        "val_loss": final,
        "perplexity": math.exp(final) if final is not None and final < MAX_PERPLEXITY_NATS else None,
        "hyperparameters": {name: trial[name] for name in HYPERPARAMETERS},
    }


def _changes(measured: Measured, winner: Row | None, baseline: Row | None) -> list[Row]:
    """Return a row per hyperparameter that the winner changed, then those searched that it left as they were."""
    if winner is None or baseline is None or winner["is_baseline"]:
        return []
    before, after = parameter_values(baseline), parameter_values(winner)
    searched = {parameter.name for parameter in measured.parameters}
    rows = []
    for name in (*HYPERPARAMETERS, WARMUP_FRAC):
        reads = [name != WARMUP_FRAC or row["lr_schedule"] in SCHEDULES_WITH_WARMUP for row in (before, after)]
        old, new = (row[name] if read else None for row, read in zip((before, after), reads, strict=True))
        if name in _NOT_A_CHANGE or (old == new and name not in searched) or not any(reads):
            continue
        rows.append({"name": name, "label": label(name), "unit": unit(name), "baseline": old, "winner": new})
    return sorted(rows, key=lambda row: row["baseline"] == row["winner"])
