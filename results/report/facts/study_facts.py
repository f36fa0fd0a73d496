"""All numbers and texts of a report as one plain dict, which report.html, report.md and --json show."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

from results import ranking
from results.attribution.attribution_values import load_attribution
from results.attribution.attribution_values import to_json as attribution_json
from results.attribution.sentences import did_it_words, summary_lines
from results.confirmation.attempt import Attempt, attempt_rows, load_attempts
from results.confirmation.attempt import to_json as attempts_json
from results.confirmation.paired_t import stable_losses
from results.device_time import time_winner
from results.report.facts.analysis import Measured, Row, parameter_values, searched_parameters
from results.report.facts.answer import answer_facts
from results.report.facts.importance import importance
from results.report.facts.rungs import baseline_loss_reached, costs, first_beaten, rung_agreement
from results.report.facts.searched_parameters import edges, instability, ordered
from results.samples import MODELS, samples_json
from results.study.folder import Study
from results.winner import winner_in
from results.words import budget_words, early_end_words, evaluation_words, label, percent_words, unit
from spaces.budget import budget_of
from spaces.domains import Choice, SearchParameter
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS, config_from
from trainable.errors import count_words
from trainable.rows import TrialStatus

FACTS_VERSION = 1
PAUSE_S = 600.0
"""A trial that lasted so much longer than it trained and evaluated was interrupted meanwhile."""


def report_facts(study: Study) -> dict[str, Any]:
    """Return the facts of a study: plain JSON values, no NaN; losses in nats/token, trials from best to worst.

    Raises UserError when a file of the study is damaged.
    """
    document, rows, metrics = study.document(), study.trials(), study.metrics()
    attempts, attribution = load_attempts(study), load_attribution(study)
    measured = _measured(study, document, rows, metrics)
    counts = ranking.ending_counts(measured.trials)
    answer = answer_facts(study, measured)
    by_time = time_winner(document, rows, metrics, measured.winner)
    answer["by_device_time"] = by_time
    answer["notes"] += [by_time["words"]] if by_time else []
    if document["kind"] == "attribute":
        ends = "" if attribution is None else f": {attribution.before_name} to {attribution.after_name}"
        answer["headline"] = f"Which of the changes did it{ends}"
        answer["proof"]["words"] = f"{count_words(counts['completed'], 'run')} completed; nothing was searched"
    winner_id = measured.winner.trial["trial_id"] if measured.winner.trial else None
    confirmation = _confirmation_facts(attempts, rows)
    answer["fresh"] = _fresh_means(measured, confirmation)
    facts = {
        "facts_version": FACTS_VERSION,
        "study": _study_facts(study, document, measured),
        "answer": answer,
        "endings": {status: count for status, count in counts.items() if count},
        "cost": _cost_facts(document, measured, rows, metrics),
        "rungs": list(rung_agreement(measured)),
        "edges": list(edges(measured)),
        "instability": instability(measured),
        "importance": importance(measured),
        "confirmation": confirmation,
        "attribution": None
        if attribution is None
        else {**attribution_json(attribution), "summary": [did_it_words(attribution), *summary_lines(attribution)]},
        "samples": _samples_facts(study, winner_id),
        "parameters": [_parameter_facts(parameter) for parameter in measured.parameters],
        "initial_loss": measured.initial_loss,
        "loss_limit": measured.loss_limit,
        "trials": list(_trial_facts(document, measured, winner_id)),
        "protocol": _protocol_facts(document, measured),
        "versions": {**document["versions"], "git_commit": document.get("git_commit")},
    }
    plain: dict[str, Any] = _plain(facts)
    return plain


def edges_of(study: Study) -> list[dict[str, Any]]:
    """Return the searched parameters for which the winner is on the edge of the domain, as report_facts() does."""
    return list(edges(_measured(study, study.document(), study.trials(), study.metrics())))


def _measured(study: Study, document: Row, rows: Sequence[Row], metrics: Sequence[Row]) -> Measured:
    # A study of kind "attribute" has no other runs to show; elsewhere attribution runs only explain the trials.
    trials = rows if document["kind"] == "attribute" else ranking.ranked_trials(rows)
    evaluations: dict[int, list[Row]] = {}
    for row in metrics:
        evaluations.setdefault(row["trial_id"], []).append(row)
    parameters, domains_known = searched_parameters(document, trials)
    return Measured(
        trials=trials,
        winner=winner_in(study, document, rows),
        evaluations=evaluations,
        parameters=parameters,
        domains_known=domains_known,
        budget=budget_of(document),
        rung_tokens=tuple(document.get("rung_tokens", ())),
        uniform_loss=math.log(document["corpus"]["vocab_size"]),
    )


def _confirmation_facts(attempts: Sequence[Attempt], rows: Sequence[Row]) -> Row | None:
    """Return the attempts as in confirmation.json, with every run's loss and status."""
    document = attempts_json(attempts)
    for entry, attempt in zip(document["attempts"], attempts, strict=True):
        entry["runs"] = [
            {
                "of_trial": run.of_trial,
                "seed": run.config.seed,
                **{name: row[name] if row else None for name in ("trial_id", "status", "val_loss")},
            }
            for run, row in attempt_rows(attempt, rows)
        ]
    return document if attempts else None


def _fresh_means(measured: Measured, confirmation: Row | None) -> Row | None:
    """Return the winner's and the baseline's mean val_loss over the fresh seeds on which both completed."""
    winner, baseline = measured.winner.trial, measured.winner.baseline
    attempt = measured.winner.attempt
    if confirmation is None or attempt is None or winner is None or baseline is None:
        return None
    runs = confirmation["attempts"][attempt.number - 1]["runs"]
    ours, theirs = (
        stable_losses({run["seed"]: ranking.final_loss(run) for run in runs if run["of_trial"] == row["trial_id"]})
        for row in (winner, baseline)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    means = {name: fmean(of[seed] for seed in seeds) for name, of in (("winner", ours), ("baseline", theirs))}
    return {"seeds": len(seeds), **means}


def _samples_facts(study: Study, winner_id: int | None) -> Row | None:
    """Return the prompt and its continuations in the order to show; the best's only where it is not the baseline."""
    document = samples_json(study)
    if document is None:
        return None
    by_model = document.pop("samples")
    continuations = [
        {"name": model, "trial_id": None, "text": None, "why": None, **by_model[model]}
        for model in MODELS
        if model in by_model and (model != "best" or by_model["best"] != by_model.get("baseline"))
    ]
    for one in continuations:
        # Since the samples were written, an interrupted command may have found another winner.
        if one["name"] == "best" and one["trial_id"] != winner_id:
            one["name"] = f"an earlier best, trial {one['trial_id']}"
    return {**document, "continuations": continuations}


def _study_facts(study: Study, document: Row, measured: Measured) -> Row:
    space, counts = document.get("space") or {}, ranking.ending_counts(measured.trials)
    started = [trial["started_at"] for trial in measured.trials if trial["started_at"] is not None]
    ended = [trial["ended_at"] for trial in measured.trials if trial["ended_at"] is not None]
    return {
        "name": study.name,
        "path": str(study.path),
        "kind": document["kind"],
        "space": space.get("name"),
        "space_path": space.get("path"),
        "description": space.get("description"),
        "space_toml": space.get("toml"),
        "created_at": document["created_at"],
        "started_at": min(started, default=None),
        "ended_at": max(ended, default=None),
        "wall_s": _wall_s(measured.trials),
        "trials": len(measured.trials),
        "trials_planned": document["trials_planned"],
        "early_end": early_end_words(document),
        "under_way": counts["running"],
        "interrupted": counts["interrupted"],
        "unfinished": _unfinished_words(counts, planned=document["trials_planned"]),
    }


def _unfinished_words(counts: Mapping[TrialStatus, int], *, planned: int) -> str | None:
    """Return how far a study is that goes on or was cut off; None once all of its trials have ended."""
    running, cut_off, started = counts["running"], counts["interrupted"], sum(counts.values())
    if running:
        return f"Under way: {count_words(running, 'trial')} running, {started} of {planned} started"
    if cut_off or started < planned:
        return f"Interrupted: {started} of {planned} trials started" + (f", {cut_off} cut off" if cut_off else "")
    return None


def _wall_s(trials: Sequence[Row]) -> float | None:
    """Return the seconds during which at least one trial was under way, without long pauses before a resume."""
    spans = []
    for start, end, active_s in ((trial["started_at"], trial["ended_at"], trial["active_s"]) for trial in trials):
        if start is not None and end is not None:
            # An interrupted trial that went on later keeps its first start.
            was_paused = (end - start).total_seconds() > active_s + PAUSE_S
            spans.append((end - timedelta(seconds=active_s) if was_paused else start, end))
    total, until = timedelta(), datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(spans):
        total += max(timedelta(), end - max(start, until))
        until = max(until, end)
    return total.total_seconds() if spans else None


def _cost_facts(document: Row, measured: Measured, rows: Sequence[Row], metrics: Sequence[Row]) -> Row:
    trials, rows = ranking.of_their_own(measured.trials, metrics), ranking.of_their_own(rows, metrics)
    by_purpose = [{"purpose": purpose, **spent} for purpose, spent in ranking.spent_by_purpose(rows).items()]
    # An attribution on its own has no other trials: its runs are the study's cost, and come to nothing more.
    counted = {trial["purpose"] for trial in measured.trials}
    return {
        "by_ending": list(costs(trials)),
        **asdict(ranking.savings(trials)),
        "slots": document["device"].get("slots"),
        "baseline_first_beaten": first_beaten(measured),
        "baseline_loss_reached": baseline_loss_reached(measured),
        "by_purpose": by_purpose,
        "further": [row for row in by_purpose if row["purpose"] not in counted],
    }


def _parameter_facts(parameter: SearchParameter) -> Row:
    domain, condition = parameter.domain, parameter.condition
    is_choice = isinstance(domain, Choice)
    ends = domain.examples()
    return {
        "name": parameter.name,
        "label": label(parameter.name),
        "unit": unit(parameter.name),
        "domain": str(domain),
        "values": ordered(ends) if is_choice else None,
        "low": None if is_choice else ends[0],
        "high": None if is_choice else ends[-1],
        "log": not isinstance(domain, Choice) and domain.log,
        "condition": None if condition is None else {"parent": condition.parent, "values": list(condition.values)},
    }


def _trial_facts(document: Row, measured: Measured, winner_id: int | None) -> Iterator[Row]:
    goal = measured.winner.baseline_val_loss
    reduction = document.get("scheduler", {}).get("reduction_factor")
    for rank, trial in enumerate(ranking.leaderboard(measured.trials), 1):
        final = ranking.final_loss(trial)
        evaluations = measured.evaluations.get(trial["trial_id"], ())
        values, reads, searched = parameter_values(trial), config_from(trial).reads, measured.values(trial)
        yield {
            **trial,
            WARMUP_FRAC: values[WARMUP_FRAC],
            "rank": rank,
            "is_best": trial["trial_id"] == winner_id,
            "val_loss_difference": None if final is None or goal is None else final - goal,
            "budget_frac": ranking.budget_frac(trial),
            "why": _why(trial, reduction, measured),
            "searched": searched,
            # The warm-up of a schedule that the baseline has added is not searched, and yet the trial has it.
            "read": {one.name: values[one.name] for one in measured.parameters if reads(one.name)} | searched,
            "rung_losses": [measured.loss_at(trial, tokens) for tokens in measured.rung_tokens],
            "evaluations": {
                name: [row[name] for row in evaluations]
                for name in ("tokens_seen", "optimizer_steps", "active_s", "val_loss")
            },
        }


def _why(trial: Row, reduction: int | None, measured: Measured) -> str:
    """Return why the trial ended where it did, empty for one that completed."""
    if trial["status"] == "stopped":
        best, at, rungs = f"1/{reduction}" if reduction else "trials", "its rung", measured.rung_tokens
        if trial["rung"] is not None and trial["rung"] < len(rungs):
            at = f"{percent_words(rungs[trial['rung']] / measured.budget.tokens)} of the budget"
        return f"not among the best {best} at {at}"
    steps = f"after {count_words(trial['optimizer_steps'], 'step')}"
    reasons = {
        "completed": "",
        "unstable": trial["verdict"] or "no verdict",
        "out_of_memory": f"out of memory {steps}",
        "failed": f"failed {steps}; search.log has the error",
        "interrupted": f"cut off {steps}; it goes on when the study is resumed",
        "running": f"{steps} so far",
    }
    return str(reasons[trial["status"]])


def _protocol_facts(document: Row, measured: Measured) -> Row:
    names = ("model", "data_source", "checkpoint_path", "corpus", "evaluation", "seed", "device")
    return {
        **{name: document[name] for name in names},
        **{name: document.get(name) for name in ("searcher", "scheduler", "stability")},
        "budget_tokens": measured.budget.tokens,
        "device_s": measured.budget.device_s,
        "budget": budget_words(measured.budget),
        "evaluated_on": evaluation_words(document),
        "rung_tokens": list(measured.rung_tokens),
        "pinned": (document.get("settings") or {}).get("pins"),
        "baseline_name": document["baseline"].get("name"),
        "baseline": {name: document["baseline"][name] for name in HYPERPARAMETERS},
    }


def _plain(value: Any) -> Any:
    """Return `value` in JSON's types: times as ISO text, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value.isoformat() if isinstance(value, datetime) else value
