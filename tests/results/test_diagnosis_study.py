import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from results.diagnosis.of_study import context_of_study, diagnose_study, report_of_study, report_of_trial
from results.diagnosis.rules.start import after_hard_settings
from results.diagnosis.run_view import Context, view
from results.diagnosis.trace import RunTrace, trace_of_trial
from results.study.folder import Study, create_study
from results.study.tables import METRICS, STEPS, TRIALS, write_table
from trainable.config import DOCUMENTED
from trainable.errors import UserError
from trainable.rows import MetricsRow, StepRow
from trainable.stability import judge_trace

STEP_COUNT = 300


@pytest.fixture
def study(studies: Path, make_document: Callable[..., dict[str, Any]]) -> Study:
    document = make_document()
    # Random weights and 2,048 tokens start at 7.62.
    corpus = {**document["corpus"], "unigram_entropy": 6.2, "vocab_size": 2048}
    return create_study(document["name"], {**document, "corpus": corpus, "model": "tiny-scratch"})


def loss_at(step: int, gauss: Callable[[float, float], float], *, diverges: bool) -> float:
    healthy = 4.2 + 3.4 * 0.985**step
    return healthy + gauss(0, 0.05) + (max(0, step - 150) * 0.05 if diverges else 0.0)


def fill(
    study: Study,
    make_trial: Callable[..., dict[str, Any]],
    learning_rates: list[float],
    unstable: set[int],
    **changes: Any,
) -> None:
    """Write trials of 300 steps; the unstable ones diverge from step 150 on and end at 250."""
    trials, metrics = [], []
    for trial_id, learning_rate in enumerate(learning_rates):
        diverges = trial_id in unstable
        last = 250 if diverges else STEP_COUNT
        gauss = random.Random(trial_id).gauss
        losses = [loss_at(step, gauss, diverges=diverges) for step in range(1, last + 1)]
        rows = [
            StepRow(
                optimizer_steps=step,
                tokens_seen=4096 * step,
                train_loss=loss,
                grad_norm=1.0,
                learning_rate=learning_rate,
                step_time_s=0.1,
            )
            for step, loss in enumerate(losses, start=1)
        ]
        write_table(study.steps_path(trial_id), [asdict(row) for row in rows], STEPS)
        for step in range(0, last + 1, 50):
            loss = losses[step - 1] if step else 7.65
            row = MetricsRow(
                tokens_seen=4096 * step,
                optimizer_steps=step,
                val_loss=loss + 0.05,
                train_loss=loss,
                grad_norm=1.0,
                learning_rate=learning_rate,
                tokens_per_s=1e4,
                active_s=0.1 * step,
            )
            said = {name: value for name, value in asdict(row).items() if name in METRICS.names}
            metrics.append({"trial_id": trial_id, **said})
        trials.append(
            make_trial(
                trial_id,
                "unstable" if diverges else "completed",
                losses[-1],
                learning_rate=learning_rate,
                training_steps=STEP_COUNT,
                optimizer_steps=last,
                tokens_seen=4096 * last,
                verdict=f"divergence at step {last}: the median loss rose" if diverges else None,
                **changes,
            )
        )
    write_table(study.trials_path, trials, TRIALS)
    write_table(study.metrics_path, metrics, METRICS)


def test_a_sound_study(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    fill(study, make_trial, [1e-3, 2e-3, 3e-3], unstable=set())
    assert diagnose_study(study) == []
    report = report_of_study(study)
    assert report.is_healthy
    assert report.about == "study of 3 trials: 3 completed"
    assert report.trace is not None
    assert report.trace.source == "trial 0 of study plateau-1125-0310"


def test_what_made_the_model_worse_is_not_called_sound(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    fill(study, make_trial, [1e-3, 2e-3], unstable=set())
    started(study, 4.2)  # They end at 4.24, as sound as their course is.
    [finding] = diagnose_study(study)
    assert "makes the model worse: its val loss starts at 4.2000 and ends at 4." in finding.summary
    assert finding.evidence == "300 steps, learning rate 2.00e-03; the training text was read 13.7 times"
    assert report_of_trial(study, 1).findings[0].summary.startswith("trial 1 makes the model worse")
    started(study, 7.65)
    assert diagnose_study(study) == []


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, "try a third of"),
        ({"dropout": 0.5}, "try a lower dropout (0.5), which may alone have done it, then a third of"),
        ({"weight_decay": 3.0}, "try a lower weight decay (3), which may alone have done it, then a third of"),
        ({"weight_decay": 1.0}, "try a third of"),
    ],
)
def test_of_hard_settings_the_advice_is_not_the_learning_rate_alone(
    study: Study, make_trial: Callable[..., dict[str, Any]], settings: dict[str, float], first: str
) -> None:
    fill(study, make_trial, [1e-3, 1e-3], unstable={1}, **settings)
    started(study, 4.2)
    [finding] = report_of_trial(study, 0).findings
    assert finding.next_step.startswith(first)
    assert first in report_of_trial(study, 1).findings[0].next_step
    assert after_hard_settings({"learning_rate": 0.03, "weight_decay": 0.1}, "a lower rate") == "a lower rate"


def test_one_step_is_no_steps_and_a_part_of_the_text_not_read_0_times(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    fill(study, make_trial, [1e-3], unstable=set())
    started(study, 4.2)
    write_table(study.trials_path, [{**study.trials()[0], "optimizer_steps": 1, "tokens_seen": 128}], TRIALS)
    [finding] = diagnose_study(study)
    assert finding.evidence == "1 step, learning rate 1.00e-03; 0.1% of the training text was read"


def started(study: Study, val_loss: float) -> None:
    document = study.document()
    study.study_json.write_text(json.dumps({**document, "start": {"val_loss": val_loss, "train_loss": 4.2}}))


def test_where_the_unstable_trials_lie(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    fill(study, make_trial, [1e-3, 2e-3, 3e-3, 1e-2, 2e-2, 3e-2], unstable={3, 4, 5})
    findings = {finding.kind: finding for finding in diagnose_study(study)}
    share = findings["unstable_trials"]
    assert "50 % of the trials were unstable, at learning rates of 0.01 and more" in share.summary
    assert "learning rate 0.01 to 0.03; others held at 0.001 to 0.003" in share.evidence
    assert "verdicts: divergence" in share.evidence
    assert "trial 3 (also in trial 4 and trial 5): " in findings["divergence"].summary
    assert "divergence" in findings


def test_rates_that_ruin_any_weights_are_the_cause_and_one_run_is_no_range(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    """A baseline is never stopped: one that completed far above its start did not hold."""
    fill(study, make_trial, [30.0, 3.0, 100.0], unstable={1, 2})
    started(study, 4.2)
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.summary == "67 % of the trials were unstable, at all learning rates"
    assert share.evidence == "2 of 3 ended trials, learning rate 3 to 100; verdicts: divergence"
    assert share.next_step == "search learning rates up to about 3e-03: these ruin any weights"
    fill(study, make_trial, [30.0], unstable={0})
    assert "unstable_trials" not in [finding.kind for finding in diagnose_study(study)]


def test_no_rate_is_advised_at_which_the_model_got_worse(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    """Half of the lowest unstable rate was advised, where whole trials had ended above their start."""
    fill(study, make_trial, [1e-5, 2e-5, 0.02, 0.1, 60.0], unstable={3, 4})
    rows = study.trials()
    started(study, rows[1]["val_loss"] + 0.1)
    rows[2]["val_loss"] = rows[1]["val_loss"] + 2
    write_table(study.trials_path, rows, TRIALS)
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.next_step == "search learning rates up to about 0.01, or give the schedule a warm-up"


def test_a_trials_own_verdict_is_said_of_no_trial_that_was_not_ended(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    """The baseline is never ended, however high its loss."""
    fill(study, make_trial, [1e-2, 1e-2, 1e-3], unstable={0, 1})
    baseline, ended, other = study.trials()
    baseline |= {"status": "completed", "verdict": None}
    write_table(study.trials_path, [baseline, ended, other], TRIALS)
    summaries = [finding.summary for finding in diagnose_study(study) if finding.kind == "divergence"]
    assert len(summaries) == 2
    assert any(summary.startswith("trial 1: it was stopped as unstable: divergence") for summary in summaries)
    assert any(summary.startswith("trial 0: the loss diverges") for summary in summaries)


def test_an_easy_first_batch_does_not_say_that_training_made_the_model_worse(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    """Batches of few tokens scatter by a nat; held-out text, read at the start and at the end, does not."""
    fill(study, make_trial, [1e-4], unstable=set())
    for held_out, kinds in ((-0.1, []), (0.1, ["divergence"])):
        losses = [3.5, *(5.0 + (step % 3) / 20 for step in range(1, 40))]
        rows = study.steps(0)[:40]
        steps = [{**row, "train_loss": loss} for row, loss in zip(rows, losses, strict=True)]
        write_table(study.steps_path(0), steps, STEPS)
        metrics = [{**row, "val_loss": 5.0 + held_out * place} for place, row in enumerate(study.metrics()[:2])]
        metrics[0]["train_loss"], metrics[1]["optimizer_steps"] = 3.5, 40
        write_table(study.metrics_path, metrics, METRICS)
        found = report_of_trial(study, 0).findings
        assert [finding.kind for finding in found if "made the model worse" in finding.summary] == kinds
        fill(study, make_trial, [1e-4], unstable=set())


def test_unstable_at_every_rate(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    fill(study, make_trial, [1e-3, 2e-3, 3e-3, 4e-3], unstable={1, 2, 3})
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.summary.endswith("learning rates of 0.002 and more")
    fill(study, make_trial, [3e-3, 1e-3, 2e-3, 4e-3], unstable={0, 1, 2})
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.summary.endswith("; others held at such learning rates or higher ones")
    fill(study, make_trial, [3e-3, 1e-3], unstable={0, 1})
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.summary.endswith("at all learning rates")


def test_an_unstable_trial_below_the_limit_is_not_said_to_be_above_it(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    fill(study, make_trial, [2e-3, 1e-3, 3e-3, 4e-3, 5e-3, 6e-2], unstable={1, 5})
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.summary == "33 % of the trials were unstable, 1 of the 2 at learning rates of 0.06 and more"
    fill(study, make_trial, [2e-3, 1e-3, 6e-2], unstable={2})
    share = next(finding for finding in diagnose_study(study) if finding.kind == "unstable_trials")
    assert share.evidence.startswith("1 of 3 ended trials, learning rate 0.06; others held at 0.001 to 0.002")


def test_a_baseline_that_broke(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    fill(study, make_trial, [1e-3, *[1e-3] * 9], unstable={0})
    kinds = {finding.kind: finding for finding in diagnose_study(study)}
    assert "the baseline ended as unstable" in kinds["baseline_incomplete"].summary
    assert "unstable_trials" not in kinds


def test_what_broke_without_a_verdict_is_found_in_the_study_and_in_the_trial(
    study: Study, make_trial: Callable[..., dict[str, Any]]
) -> None:
    """The study's next step names the trial, of which nothing may be recorded."""
    fill(study, make_trial, [1e-3, 2e-3, 3e-3], unstable=set())
    rows = study.trials()
    broke = {"val_loss": None, "optimizer_steps": 0, "tokens_seen": 0, "batch_size": 64}
    write_table(study.trials_path, [{**rows[0], "status": "out_of_memory", **broke}, *rows[1:]], TRIALS)
    write_table(study.metrics_path, [row for row in study.metrics() if row["trial_id"]], METRICS)
    study.steps_path(0).unlink()
    report = report_of_study(study)
    assert report.about == "study of 3 trials: 2 completed, 1 out of memory"
    assert report.findings[0].summary == "1 of 3 trials ran out of memory"
    assert report.findings[0].evidence == "after 0 steps, batch x block 64 x 128 in fp32"
    assert report.findings[1].next_step.endswith(f"make diagnose TARGET={study.name}/0")
    [finding] = report_of_trial(study, 0).findings
    assert (finding.kind, finding.summary) == ("out_of_memory", "trial 0 ran out of memory")
    write_table(study.trials_path, [*rows[:2], {**rows[2], "status": "failed", "optimizer_steps": 1}], TRIALS)
    [finding] = report_of_trial(study, 2).findings
    assert (finding.summary, finding.evidence) == ("trial 2 failed", "after 1 step, batch x block 32 x 128 in fp32")
    with pytest.raises(UserError, match="has no trial 7"):
        report_of_trial(study, 7)


def test_an_empty_study_and_torn_steps(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    assert diagnose_study(study) == []
    report = report_of_study(study)
    assert report.about == "study of 0 trials: none has started"
    assert report.headline == f"Nothing wrong found in what study {study.name} holds; no trial has started."
    fill(study, make_trial, [1e-3, 2e-3], unstable=set())
    study.steps_path(1).write_bytes(b"torn")
    assert diagnose_study(study) == []


def test_a_trial_as_a_trace(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    fill(study, make_trial, [1e-3], unstable=set(), lr_schedule="warmup_cosine", warmup_steps=30)
    trace = trace_of_trial(study, 0)
    assert trace.steps == tuple(range(STEP_COUNT + 1))
    assert trace.series("val_loss")[0] == [0, 50, 100, 150, 200, 250, 300]
    # At step 0 both losses come from the evaluation.
    assert trace.train_loss[0] == 7.65
    assert trace.grad_norm[0] is None
    assert trace.total_steps == STEP_COUNT
    assert trace.announced["lr_schedule"] == "warmup_cosine"
    assert trace.announced["warmup_steps"] == "30"
    assert trace.announced["precision"] == DOCUMENTED.precision


def test_a_trial_is_judged_by_its_steps_as_it_was_while_it_ran() -> None:
    losses = [6.3 + random.Random(step).gauss(0, 0.05) for step in range(1, 151)]
    unknown = (None,) * 151
    trace = RunTrace(
        source="trial 0",
        origin="trial",
        steps=tuple(range(151)),
        train_loss=(7.6, *losses),
        val_loss=(7.6, *unknown[1:]),
        grad_norm=unknown,
        learning_rate=unknown,
        step_time_s=unknown,
        total_steps=300,
    )
    seen = view(trace, Context(vocab_size=2048, pretrained=False, unigram_entropy=6.2)).findings
    live = judge_trace(losses, None, None, budget_steps=300, unigram_entropy=6.2, from_scratch=True)
    assert live[-1].evidence.startswith(f"after {live[-1].step} of 300 steps from scratch")
    assert list(seen) == live


def test_a_trial_that_is_not_there(study: Study, make_trial: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="has no trial 0: none has started"):
        trace_of_trial(study, 0)
    fill(study, make_trial, [1e-3, 2e-3], unstable=set())
    with pytest.raises(UserError, match="has no trial 7: it has 0 to 1"):
        trace_of_trial(study, 7)
    write_table(study.trials_path, [make_trial(0, "failed")], TRIALS)
    write_table(study.metrics_path, [], METRICS)
    study.steps_path(0).unlink()
    with pytest.raises(UserError, match="recorded no step: it is failed"):
        trace_of_trial(study, 0)


@pytest.mark.parametrize(
    ("changes", "pretrained"),
    [
        ({"model": "tiny-scratch"}, False),
        ({"model": "gpt2"}, True),
        ({"model": "./folder"}, None),
        ({"model": "gpt2", "checkpoint_path": "/x.pt"}, None),
    ],
)
def test_what_the_study_knows_of_its_model(
    studies: Path, make_document: Callable[..., dict[str, Any]], changes: dict[str, Any], pretrained: bool | None
) -> None:
    study = create_study("one", make_document(name="one", **changes))
    known = Context(vocab_size=2048, pretrained=pretrained, unigram_entropy=6.35, eval_tokens=9920)
    assert context_of_study(study) == known
