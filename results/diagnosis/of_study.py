"""What is wrong with a study as a whole: unstable trials and where they lie, the baseline, the worst trials."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from results.diagnosis.diagnose import diagnose, ranked
from results.diagnosis.findings import Diagnosis
from results.diagnosis.render import Report, report_of_trace
from results.diagnosis.rules.start import TOO_HIGH_LR, after_hard_settings
from results.diagnosis.run_view import Context
from results.diagnosis.trace import trace_of_trial
from results.ranking import baseline_trial, ending_counts, final_loss, leaderboard, ranked_trials
from results.study.folder import Study
from results.study.planned_run import Row
from results.winner import is_worse, start_val_loss, winner_of, worse_words
from results.words import (
    STATUS_LABELS,
    batch_words,
    list_words,
    percent_words,
    range_words,
    scored_tokens,
    statuses_words,
    value_words,
)
from trainable.errors import UserError, count_words, first_of
from trainable.model.model_names import PRESETS
from trainable.rows import ENDINGS

UNSTABLE_FRAC = 0.15
WORST_TRIALS = 5
MANY_PASSES = 3.0
"""Over a small text: what a model gains from more of them is that text alone."""
VERDICT_KINDS = {"nonfinite": "nonfinite", "divergence": "divergence", "floor": "collapse"}
"""The kind of finding that a verdict is, by its reason."""
_HOW_IT_BROKE = {
    "out_of_memory": (
        "ran out of memory",
        "leave such sizes out of the space, or set a lower BATCH_SIZE with as much more GRAD_ACCUM_STEPS; "
        "CONCURRENCY=1 leaves a trial all of the memory",
    ),
    "failed": (
        "failed",
        "read the error in the study's search.log: it is the program's or the machine's fault, and no setting's",
    ),
}
"""By status, of trials that ended without a verdict: what the trial did, and what to do."""


def context_of_study(study: Study) -> Context:
    """Return what study.json knows of its trials' model and text. Raises UserError when it is damaged."""
    document = study.document()
    corpus, model = document["corpus"], document["model"]
    pretrained: bool | None = None
    # A checkpoint or a folder may hold anything; a preset is random, and what the hub names is trained.
    if not document["checkpoint_path"] and not model.startswith((".", "/", "~")):
        pretrained = model not in PRESETS
    return Context(
        vocab_size=corpus["vocab_size"],
        pretrained=pretrained,
        unigram_entropy=float(corpus["unigram_entropy"]),
        eval_tokens=scored_tokens(document),
    )


def report_of_trial(study: Study, trial_id: int) -> Report:
    """Return the report of one trial, with the verdict that ended it. Raises UserError."""
    trial = next((row for row in study.trials() if row["trial_id"] == trial_id), None)
    broken = [] if trial is None else list(_broken([trial]))
    try:
        report = report_of_trace(trace_of_trial(study, trial_id), context=context_of_study(study))
    except UserError:
        if not broken:
            raise
        # Before its first step.
        return Report(
            target=f"trial {trial_id} of study {study.name}", about="no step was recorded", findings=tuple(broken)
        )
    assert trial is not None
    found = ranked([*broken, *_with_own_verdict(trial, report.findings)])
    return replace(report, findings=tuple(found or _made_worse(study, trial)))


def _made_worse(study: Study, trial: Row | None) -> list[Diagnosis]:
    """Judge a completed trial by its loss alone, where no rule has found what is wrong with its course."""
    document = study.document()
    start, end = start_val_loss(document), final_loss(trial)
    if trial is None or (worse := worse_words(f"trial {trial['trial_id']}", end, start)) is None:
        return []
    passes = trial["tokens_seen"] / document["corpus"]["train_tokens"]
    lower = after_hard_settings(trial, "a third of the learning rate or less, with a warm-up")
    longer = "then more steps, for the first ones cost a trained model something"
    read = f"the training text was read {passes:.1f} times"
    if passes < 1:
        read = f"{percent_words(passes)} of the training text was read"
    return [
        Diagnosis(
            kind="divergence",
            confidence=0.7,
            summary=worse,
            evidence=f"{count_words(trial['optimizer_steps'], 'step')}, "
            f"learning rate {trial['learning_rate']:.2e}; {read}",
            next_step=f"try {lower}; "
            + (longer if passes < MANY_PASSES else "then more text: what is read so often is learned by heart"),
        )
    ]


def _with_own_verdict(trial: Row, findings: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Return the findings, and in place of one of its kind the trial's own verdict, which is certain."""
    kind = _verdict_kind(trial)
    if kind is None:
        return list(findings)
    same = next((finding for finding in findings if finding.kind == kind), None)
    own = Diagnosis(
        kind=kind,
        confidence=1.0,
        summary=f"it was stopped as unstable: {trial['verdict']}",
        evidence=same.evidence if same else str(trial["verdict"]),
        next_step=same.next_step
        if same
        else f"try {after_hard_settings(trial, 'a lower learning rate, or a longer warm-up')}",
        steps=(trial["optimizer_steps"],) * 2,
    )
    return [own, *(finding for finding in findings if finding.kind != kind)]


def _verdict_kind(trial: Row) -> str | None:
    """Return the kind of finding that the trial's own verdict is, None where it has none."""
    return VERDICT_KINDS.get(_reason(trial)) if trial["status"] == "unstable" else None


def _reason(trial: Row) -> str:
    return str(trial["verdict"] or "").partition(" ")[0]


def report_of_study(study: Study) -> Report:
    """Return the study's report. Raises UserError when a file of it is damaged."""
    trials = _judged_trials(study)
    counts = statuses_words(ending_counts(trials))
    findings = diagnose_study(study)
    baseline = baseline_trial(trials)
    trace = None
    if baseline is not None:
        with suppress(UserError):
            trace = trace_of_trial(study, baseline["trial_id"])
    return Report(
        target=f"study {study.name}",
        about=f"study of {count_words(len(trials), 'trial')}: {counts or 'none has started'}",
        findings=tuple(findings),
        notes=("the picture shows the baseline",) if trace else (),
        missing=None if trials else "no trial has started",
        trace=trace,
    )


def diagnose_study(study: Study) -> list[Diagnosis]:
    """Return what is wrong with the study, the finding that explains most first; [] when nothing was found.

    Looked at are the endings of all trials, and the steps of the baseline, the best and the worst ones.
    Raises UserError when a file of the study is damaged.
    """
    trials = _judged_trials(study)
    found = [*_broken(trials), *_unstable(study, trials), *_baseline(study, trials)]
    found += _of_trials(study, _chosen(trials))
    return ranked(found or _made_worse(study, winner_of(study).trial))


def _judged_trials(study: Study) -> list[Row]:
    """Return the study's own trials; of an attribution on its own, its runs."""
    trials = study.trials()
    return ranked_trials(trials) or trials


def _unstable(study: Study, trials: Sequence[Row]) -> Iterator[Diagnosis]:
    ended = [trial for trial in trials if trial["status"] in ENDINGS]
    bad = [trial for trial in ended if trial["status"] == "unstable"]
    # One trial alone says nothing of where others would be unstable.
    if not bad or len(ended) == 1 or len(bad) < UNSTABLE_FRAC * len(ended):
        return
    # The baseline, which is never stopped, may have completed at a loss far above its start.
    start = start_val_loss(study.document())
    whole = [trial for trial in ended if trial["status"] in ("completed", "stopped")]
    good_rates = [trial["learning_rate"] for trial in whole if not is_worse(final_loss(trial), start)]
    rates = sorted(trial["learning_rate"] for trial in bad)
    said = [f"{len(bad)} of {len(ended)} ended trials, learning rate {range_words(rates[0], rates[-1])}"]
    above = None
    if good_rates:
        said.append(f"others held at {range_words(min(good_rates), max(good_rates))}")
        above = _limit(rates, good_rates)
    reasons = sorted({_reason(trial) for trial in bad} - {""})
    said += [f"verdicts: {', '.join(reasons)}"] if reasons else []
    where = "; others held at such learning rates or higher ones" if good_rates else ", at all learning rates"
    if above:
        there = sum(rate >= above for rate in rates)
        most = "" if there == len(bad) else f"{there} of the {len(bad)} "
        where = f", {most}at learning rates of {value_words(above)} and more"
    next_step = "the learning rate is not the only cause: make preflight, then "
    next_step += f"make diagnose TARGET={study.name}/{bad[0]['trial_id']}"
    if above:
        rates_of_whole = [trial["learning_rate"] for trial in whole]
        too_high = min(above, *(rate for rate in rates_of_whole if rate > max(good_rates)), math.inf)
        next_step = f"search learning rates up to about {value_words(too_high / 2)}, or give the schedule a warm-up"
    elif not good_rates and rates[0] >= TOO_HIGH_LR:
        next_step = f"search learning rates up to about {TOO_HIGH_LR / 3:.0e}: these ruin any weights"
    yield Diagnosis(
        kind="unstable_trials",
        confidence=0.9 if len(bad) >= 3 else 0.7,
        summary=f"{100 * len(bad) / len(ended):.0f} % of the trials were unstable{where}",
        evidence="; ".join(said),
        next_step=next_step,
    )


def _broken(trials: Sequence[Row]) -> Iterator[Diagnosis]:
    for status, (did, next_step) in _HOW_IT_BROKE.items():
        bad = [trial for trial in trials if trial["status"] == status]
        if not bad or len(bad) < UNSTABLE_FRAC * len(trials):
            continue
        who = f"{len(bad)} of {len(trials)} trials" if len(trials) > 1 else f"trial {bad[0]['trial_id']}"
        steps = max(trial["optimizer_steps"] for trial in bad)
        shapes = dict.fromkeys(f"{batch_words(trial)} x {trial['block_size']} in {trial['precision']}" for trial in bad)
        after = f"after {'at most ' if len(bad) > 1 else ''}{count_words(steps, 'step')}"
        yield Diagnosis(
            kind=status,
            confidence=0.95,
            summary=f"{who} {did}",
            evidence=f"{after}, batch x block {first_of(list(shapes))}",
            next_step=next_step,
        )


def _limit(bad_rates: Sequence[float], good_rates: Sequence[float]) -> float | None:
    """Return the rate from which most trials were unstable and below which most held, if there is one."""
    wrong, limit = min(
        (sum(good >= rate for good in good_rates) + sum(bad < rate for bad in bad_rates), rate) for rate in bad_rates
    )
    tells = wrong <= 0.2 * (len(bad_rates) + len(good_rates)) and min(good_rates) < limit
    return limit if tells else None


def _baseline(study: Study, trials: Sequence[Row]) -> Iterator[Diagnosis]:
    trial = baseline_trial(trials)
    if trial is None or trial["status"] in ("completed", "running", "interrupted"):
        return
    yield Diagnosis(
        kind="baseline_incomplete",
        confidence=0.95,
        summary=f"the baseline ended as {STATUS_LABELS[trial['status']]}: nothing can be compared with it",
        evidence=f"trial {trial['trial_id']}, {count_words(trial['optimizer_steps'], 'step')}, "
        f"{count_words(trial['tokens_seen'], 'token')}" + (f", verdict {trial['verdict']}" if trial["verdict"] else ""),
        next_step="the set-up is at fault where a baseline cannot run: "
        f"make diagnose TARGET={study.name}/{trial['trial_id']}",
    )


def _chosen(trials: Sequence[Row]) -> list[Row]:
    order = [trial for trial in leaderboard(trials) if trial["optimizer_steps"]]
    broken = [trial for trial in order if trial["status"] == "unstable"]
    whole = [trial for trial in order if trial["status"] == "completed"]
    baseline = baseline_trial(trials)
    chosen = [baseline] if baseline is not None and baseline["optimizer_steps"] else []
    chosen += whole[:1] + broken[-WORST_TRIALS:] + whole[-2:]
    return list({trial["trial_id"]: trial for trial in chosen}.values())


def _of_trials(study: Study, trials: Sequence[Row]) -> Iterator[Diagnosis]:
    context = context_of_study(study)
    by_kind: dict[tuple[str, bool], list[tuple[int, Diagnosis]]] = {}
    for trial in trials:
        try:
            trace = trace_of_trial(study, trial["trial_id"])
        except UserError:
            # Its steps are torn or gone; the endings above still count.
            continue
        for finding in _with_own_verdict(trial, diagnose(trace, context=context)):
            # A trial's own verdict is said of no other trial, such as a baseline that diverged and was not ended.
            is_own = finding.kind == _verdict_kind(trial)
            by_kind.setdefault((finding.kind, is_own), []).append((trial["trial_id"], finding))
    for cases in by_kind.values():
        trial_id, finding = max(cases, key=lambda case: case[1].confidence)
        others = sorted(other for other, _ in cases if other != trial_id)
        also = f" (also in {list_words([f'trial {other}' for other in others])})" if others else ""
        # One trial's fault explains less of a study than what all share.
        share = math.sqrt(len(cases) / len(trials))
        summary, confidence = f"trial {trial_id}{also}: {finding.summary}", max(0.4, finding.confidence * share)
        yield replace(finding, summary=summary, confidence=confidence)
