import json
import math
import random
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from results.diagnosis.diagnose import diagnose
from results.diagnosis.findings import Diagnosis, confidence_word
from results.diagnosis.logs.training_log import read_training_log
from results.diagnosis.render import plain_text, render, report_of_trace, to_json
from results.diagnosis.rules.time import _smooth
from results.diagnosis.run_view import Context
from results.diagnosis.trace import RunTrace
from tests.results.owner_log import STORY, Row, falling, owner_log, recorded_run, recorded_traces, story_step_s

RECORDED = Context(vocab_size=1024, pretrained=False, unigram_entropy=5.66)
"""Of the recorded runs: 1,024 tokens, random weights."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "training.log"


def found(log: Path, text: str, context: Context | None = None) -> list[Diagnosis]:
    log.write_text(text)
    return diagnose(read_training_log(log), context=context or Context())


def kinds(findings: list[Diagnosis]) -> list[str]:
    return [finding.kind for finding in findings]


def trainer_log(
    losses: list[float], *, rate: float = 5e-5, norm: float = 1.0, evals: dict[int, float] | None = None
) -> str:
    """Return the dicts of a Trainer that logs every 10 steps and lets its rate fall to 0."""
    lines = []
    for index, loss in enumerate(losses, start=1):
        epoch = f"'epoch': {index / 100:.2f}}}"
        lines.append(
            f"{{'step': {10 * index}, 'loss': {loss:.4f}, 'grad_norm': {norm:.4f}, "
            f"'learning_rate': {rate * (1 - index / (len(losses) + 1)):.4e}, {epoch}"
        )
        if evals and index in evals:
            lines.append(f"{{'step': {10 * index}, 'eval_loss': {evals[index]:.4f}, {epoch}")
    return "\n".join(lines) + "\n"


def test_the_story_begins_with_what_its_numbers_cannot_come_from(log: Path) -> None:
    log.write_text(owner_log(STORY, 5000, step_s=story_step_s))
    report = report_of_trace(read_training_log(log), context=Context())
    first_line = plain_text(report).splitlines()[0]
    assert "cannot come from a correctly loaded and labelled pretrained GPT-2" in first_line
    assert "starts at 9.23 nats/token" in first_line
    assert "10.82" in first_line
    assert kinds(list(report.findings)) == ["impossible_initial_loss", "plateau", "spike", "slow"]
    start, plateau, spike, slow = report.findings
    # Random weights and 10,000 tokens start there too, and neither the model nor its vocabulary is named.
    assert confidence_word(start.confidence) == "likely"
    assert "unless it is a model with random weights" in start.evidence
    assert "labels shifted twice" in start.summary
    assert "a fault in labels or weights, not the learning rate" in plateau.summary
    assert spike.steps == (2000, 2500)
    assert "before step 2000, 9.5846 at step 2000, its peak" in spike.evidence
    assert "back at its level by step 2500" in spike.summary
    assert "the loss the run started with" in spike.evidence
    assert "from 1.05 to 0.62 steps/s" in slow.summary
    assert slow.steps is not None
    assert slow.steps[0] == pytest.approx(1500, abs=75)
    assert any("ends at step 2500 of 5000" in note for note in report.notes)


@pytest.mark.parametrize("header", ["model: gpt2", "Loading pretrained gpt2", "vocab_size: 50,257"])
def test_the_story_is_certain_where_the_model_or_its_vocabulary_is_named(log: Path, header: str) -> None:
    (finding, *_) = found(log, owner_log(STORY, 5000, header=header))
    assert finding.kind == "impossible_initial_loss"
    assert confidence_word(finding.confidence) == "certain"
    assert "unless" not in finding.evidence


@pytest.mark.parametrize("rows", [STORY[:2], STORY[:4], STORY[:5]], ids=["two rows", "the plateau", "the spike"])
@pytest.mark.parametrize("context", [Context(), Context(pretrained=True)], ids=["bare", "pretrained"])
def test_of_the_story_a_part_is_enough(log: Path, rows: tuple[Row, ...], context: Context) -> None:
    assert kinds(found(log, owner_log(rows, 5000), context))[0] == "impossible_initial_loss"


def test_the_storys_bug_is_seen_in_a_resumed_run_too(log: Path) -> None:
    rows = [(1500, 6.65, 6.74, 1e-5), (2000, 6.5, 6.65, 1e-5), (2500, 6.3, 6.5, 1e-5), (3500, 6.2, 6.4, 1e-5)]
    (finding, *_) = found(log, owner_log(rows, 3500))
    assert finding.kind == "impossible_initial_loss"
    assert finding.confidence < 0.9
    assert "resumed at 6.65" in finding.summary


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
@pytest.mark.parametrize(
    ("rows", "total_steps"),
    [
        (lambda noise: falling(3.9, 3.2, noise=noise), 5000),
        (lambda noise: falling(3.9, 3.2, noise=noise, evaluations=50), 5000),
        (lambda noise: falling(3.4, 3.35, noise=noise), 5000),
        (lambda noise: falling(10.85, 4.0, noise=noise, rate=6e-4), 5000),
        (lambda noise: falling(10.4, 3.6, noise=noise, rate=6e-4, evaluations=50), 5000),
        (lambda noise: falling(7.65, 4.3, noise=noise, rate=1e-3, total_steps=2000), 2000),
        (lambda noise: falling(3.5, 3.2, noise=noise, total_steps=2000, evaluations=4, first_step=1500), 3500),
        (lambda noise: falling(3.9, 3.4, noise=noise, total_steps=100, evaluations=2), 100),
    ],
    ids=["fine-tune", "often", "little to learn", "scratch", "scratch, 32,000 tokens", "tiny", "resumed", "short"],
)
def test_healthy_logs_are_called_healthy(log: Path, rows: object, total_steps: int, noise: float) -> None:
    assert callable(rows)
    assert found(log, owner_log(rows(noise), total_steps)) == []


def test_healthy_at_every_step_with_hard_batches(log: Path) -> None:
    gauss = random.Random(1).gauss
    hard = [2.5 if index % 37 == 0 else 1.0 for index in range(3000)]
    losses = [3.2 + 0.7 * math.exp(-index / 500) + gauss(0, 0.3) * hard[index] for index in range(3000)]
    assert found(log, trainer_log(losses, evals=dict.fromkeys((1000, 2000, 3000), 3.3))) == []


def test_healthy_with_pauses_at_checkpoints_and_a_slow_first_step(log: Path) -> None:
    pauses = {1: 120.0, 1000: 20.0, 2000: 20.0, 3000: 20.0, 4000: 20.0}
    assert found(log, owner_log(falling(3.9, 3.2), 5000, pauses=pauses)) == []


def test_healthy_recorded_runs_are_called_healthy() -> None:
    healthy = [name for name, trace in recorded_traces().items() if trace["kind"] == "healthy"]
    assert len(healthy) >= 15
    for name in healthy:
        assert diagnose(recorded_run(name), context=RECORDED) == [], name
        assert diagnose(recorded_run(name), context=Context()) == [], name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hot_lr1.0", "divergence"),
        ("hot_ramp", "divergence"),
        ("hot_rewarm", "learning_rate_jump"),
        ("hot_lr0.1", "collapse"),
        ("hot_lr0.3", "collapse"),
        ("hot_nowarm_noclip_lr0.1", "collapse"),
        ("gradfault1e+06", "divergence"),
        ("bad_rand1", "spike"),
        ("bad_rand10", "spike"),
        ("bad_ngram1", "spike"),
        ("bad_ngram10", "spike"),
        ("bad_domain5", "spike"),
        ("bad_domain40", "spike"),
        ("plateau_lowlr", "plateau"),
        ("plateau_double", "plateau"),
        ("plateau_lrzero", "schedule_not_stepping"),
        ("fp16_autocast_lr3e-1", "nonfinite"),
        ("bf16_params_lr1e-5", "plateau"),
    ],
)
def test_recorded_faults_are_named_first(name: str, kind: str) -> None:
    for seed in (0, 1):
        findings = diagnose(recorded_run(f"{name}_s{seed}"), context=RECORDED)
        assert kinds(findings)[:1] == [kind], seed


def test_a_plateaus_cause_is_told_apart() -> None:
    low = diagnose(recorded_run("plateau_lowlr_s0"), context=RECORDED)[0]
    assert "1.0e-05 is too low" in low.summary
    high = diagnose(recorded_run("hot_lr0.3_s0"), context=RECORDED)[0]
    assert "3.0e-01 is too high" in high.summary
    labels = diagnose(recorded_run("plateau_double_s0"), context=RECORDED)[0]
    assert "fault in labels, mask or layers" in labels.summary


def test_nan_after_divergence_names_the_divergence_first() -> None:
    findings = diagnose(recorded_run("hot_ramp_s0"), context=RECORDED)
    assert kinds(findings)[:2] == ["divergence", "nonfinite"]
    assert findings[1].steps == (544, 544)


def test_random_weights_in_place_of_pretrained_ones(log: Path) -> None:
    (finding, *_) = found(log, owner_log(falling(10.9, 6.8), 5000), Context(pretrained=True))
    assert finding.kind == "impossible_initial_loss"
    assert "guessing among 50,257 tokens" in finding.summary
    assert "the weights were not loaded" in finding.summary


def test_a_norm_that_a_trainer_prints_as_nan_says_nothing_of_weights_that_learn(log: Path) -> None:
    losses = [3.9 - 0.6 * (1 - math.exp(-index / 15)) for index in range(100)]
    assert found(log, trainer_log(losses, norm=math.nan)) == []
    (finding, *_) = found(log, trainer_log([3.9] * 100, norm=math.nan))
    assert finding.kind == "nonfinite"


def test_a_pretrained_model_must_start_below_the_unigram_entropy(log: Path) -> None:
    text = owner_log(falling(6.2, 5.0), 5000)
    known = Context(pretrained=True, unigram_entropy=5.66)
    assert kinds(found(log, text, known)) == ["impossible_initial_loss"]
    assert found(log, text, Context(pretrained=True, unigram_entropy=6.5)) == []


def test_a_summed_loss_is_worse_than_guessing(log: Path) -> None:
    rows = [(step, 8 * train, val, rate) for step, train, val, rate in falling(3.9, 3.2)]
    (finding, *_) = found(log, owner_log(rows, 5000))
    assert finding.kind == "impossible_initial_loss"
    assert "a sum over 8 micro-batches" in finding.summary
    (finding, *_) = found(log, "".join(f"step {step} | loss {train:.4f}\n" for step, train, *_ in rows))
    assert finding.kind == "impossible_initial_loss"
    assert "worse than uniform guessing" in finding.summary
    assert "a sum over micro-batches" in finding.next_step


def test_overfitting_is_told_from_instability(log: Path) -> None:
    def val(step: int) -> float:
        return 3.9 - 0.0003 * step if step <= 2000 else 3.3 + 0.0002 * (step - 2000)

    overfits = [(step, 3.8 - 0.0003 * step, val(step), 2e-5) for step in range(0, 5001, 500)]
    (finding,) = found(log, owner_log(overfits, 5000))
    assert finding.kind == "overfitting"
    assert finding.steps == (2000, 5000)

    both = [(step, val(step) - 0.1 + max(0, step - 2000) * 2e-4, val(step), 2e-4) for step in range(0, 5001, 500)]
    assert kinds(found(log, owner_log(both, 5000))) == ["divergence"]

    scored = "".join(f"step {step} | val loss {val(step):.4f} | ok\n" for step in range(0, 5001, 500))
    assert kinds(found(log, scored)) == ["overfitting"]
    (finding, *_) = found(log, scored + "step 5500 | val loss 6.1 | ok\nstep 6000 | val loss 6.4 | ok\n")
    assert finding.kind == "divergence"
    assert finding.summary.endswith("does not come back: the run diverges")


def test_held_out_text_that_ends_above_its_start_is_overfitted_while_training_learns(log: Path) -> None:
    losses = [3.4 * math.exp(-index / 60) for index in range(150)]
    evals = {index: 3.0 + abs(index - 30) / 60 for index in range(10, 151, 10)}
    text = "{'step': 0, 'eval_loss': 3.5, 'epoch': 0}\n" + trainer_log(losses, evals=evals)
    assert kinds(found(log, text)) == ["overfitting"]


def test_a_training_loss_that_falls_by_a_sixth_is_not_called_flat(log: Path) -> None:
    rows = [(step, 0.99 - 0.16 * step / 5000, 1.28 + 0.67 * step / 5000, 1e-3) for step in range(0, 5001, 250)]
    assert kinds(found(log, owner_log(rows, 5000))) == ["overfitting"]


def test_an_evaluation_at_each_of_three_epochs_shows_overfitting(log: Path) -> None:
    losses = [3.4 - index / 30 for index in range(60)]
    (finding,) = found(log, trainer_log(losses, evals={20: 2.9, 40: 3.05, 60: 3.4}))
    assert finding.kind == "overfitting"
    assert "best at step 200 (2.900) and 0.50 nats/token higher at the end" in finding.summary


def test_an_easy_first_batch_is_no_divergence_while_validation_falls(log: Path) -> None:
    gauss = random.Random(0).gauss
    losses = [4.01, *(gauss(4.75, 0.12) for _ in range(25))]
    evals = {1: 4.71, 9: 4.69, 18: 4.65, 26: 4.62}
    assert found(log, trainer_log(losses, evals=evals)) == []
    (alone,) = found(log, trainer_log(losses))
    assert "the loss rises from step 20 on and does not come back" in alone.summary
    risen = dict.fromkeys(evals, 4.1) | {26: 4.8}
    assert kinds(found(log, trainer_log(losses, evals=risen))) == ["divergence"]


def test_a_slow_down_is_told_from_a_pause(log: Path) -> None:
    (slow,) = found(log, owner_log(falling(3.9, 3.2), 5000, step_s=lambda step: 0.95 if step < 2000 else 1.61))
    assert slow.kind == "slow"
    assert slow.steps is not None
    assert slow.steps[0] == pytest.approx(2000, abs=75)
    assert "1.05 to 0.62" in slow.summary
    (slow,) = found(log, owner_log(falling(3.9, 3.2), 5000, step_s=lambda step: 30.0 if step < 2000 else 120.0))
    assert "0.033 to 0.0083 steps/s" in slow.summary
    minutes = [n if n < 30 else 3 * n - 60 for n in range(60)]
    stamped = (f"2026/01/01 {m // 60:02d}:{m % 60:02d}:00 step {100 * n} loss 3.2" for n, m in enumerate(minutes))
    assert "slow" in kinds(found(log, "\n".join(stamped) + "\n"))

    # The printed mean stays low to the end, as with the slow-down above.
    text = owner_log(falling(3.9, 3.2), 5000, pauses={1510: 3600.0})
    assert "(0.58 steps/sec)" in text.splitlines()[-1]
    (stall,) = found(log, text)
    assert stall.kind == "stall"
    assert stall.steps == (1500, 1525)
    assert "1 h 00 min" in stall.summary


def test_the_smoothing_of_a_long_record_costs_no_more_than_of_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    medians, median = list[int](), statistics.median

    def counted(values: list[float]) -> float:
        medians.append(len(values))
        return median(values)

    monkeypatch.setattr(statistics, "median", counted)
    short = [1.0 + index % 7 / 100 for index in range(2000)]
    assert _smooth(short) == [median(short[max(0, at - 50) : at + 51]) for at in range(2000)]
    medians.clear()
    smooth = _smooth([1.0] * 120_000 + [2.0] * 80_000)
    assert sum(medians) < 2_000_000
    assert len(smooth) == 200_000
    assert smooth.index(2.0) == pytest.approx(120_000, abs=100)


def test_of_a_pause_in_one_printed_step_no_more_is_said_than_it_took(log: Path) -> None:
    """As nanoGPT on a Mac that slept: it prints each tenth iteration's own time."""
    times_ms = [335.0] * 40
    times_ms[24] = 309_784.28
    (stall,) = found(
        log, "".join(f"iter {10 * n}: loss {4 - n / 20:.2f}, time {ms:.2f}ms\n" for n, ms in enumerate(times_ms))
    )
    assert stall.kind == "stall"
    assert "one pause of at least about 5 min 10 s between step 230 and 240" in stall.summary


@pytest.mark.parametrize("clock", ["time: {:.0f}m {:.1f}s", "elapsed: 0:{:02.0f}:{:04.1f}"])
def test_a_clock_of_minutes_and_seconds_is_no_steps_time(log: Path, clock: str) -> None:
    def text(seconds: list[float]) -> str:
        rows = enumerate(seconds)
        return "".join(
            f"step {50 * n}: train loss {6 - n / 20:.2f}, {clock.format(s // 60, s % 60)}\n" for n, s in rows
        )

    assert found(log, text([7.7 * n for n in range(40)])) == []
    (slow,) = found(log, text([7.7 * n if n < 20 else 154 + 23.1 * (n - 20) for n in range(40)]))
    assert slow.kind == "slow"
    assert "from 6.49 to 2.16 steps/s" in slow.summary


def test_a_log_without_losses_is_not_called_sound(log: Path) -> None:
    log.write_text("".join(f"step {n} | lr 1e-4 | grad norm 1.0\n" for n in range(0, 90, 10)))
    report = report_of_trace(read_training_log(log), context=Context())
    assert report.headline.endswith("; no loss was read from it.")


def test_losses_that_are_written_as_nothing_once_they_are_not_finite_are_missed(log: Path) -> None:
    log.write_text(
        "".join(json.dumps({"step": n, "lr": 1e-4, "loss": 3 - n / 99 if n < 40 else None}) + "\n" for n in range(60))
    )
    report = report_of_trace(read_training_log(log), context=Context())
    assert report.headline.endswith("; the losses end at step 39, and the rows go on to 59.")


def test_frequent_evaluations_are_no_slow_down(log: Path) -> None:
    # A printed mean tells less of a step the longer the run: late windows all hold an evaluation, early ones none.
    rows = falling(3.9, 3.2, total_steps=400, evaluations=10)
    assert found(log, owner_log(rows, 400, progress_steps=6)) == []


def test_a_slow_stretch_that_ends(log: Path) -> None:
    text = owner_log(falling(3.9, 3.2), 5000, step_s=lambda step: 1.9 if 2000 < step < 3500 else 0.95)
    (finding,) = found(log, text)
    assert finding.kind == "slow"
    assert finding.steps is not None
    assert list(finding.steps) == pytest.approx([2000, 3500], abs=75)


@pytest.mark.parametrize(
    ("rates", "header", "words"),
    [
        (lambda step: 0.0, "", "0 in every row"),
        (lambda step: max(0.0, 2e-5 * (1 - step / 1500)), "", "is 0 from step 1500 on"),
        (lambda step: 2e-5, "lr_schedule: cosine", "schedule is not stepping"),
        (lambda step: 2e-5 * (step + 1) / 5000, "", "warm-up never ends"),
    ],
    ids=["zero", "zero too early", "constant", "warm-up"],
)
def test_a_schedule_that_does_not_step(log: Path, rates: object, header: str, words: str) -> None:
    assert callable(rates)
    rows = [(step, train, val, rates(step)) for step, train, val, _ in falling(3.9, 3.6)]
    (finding,) = found(log, owner_log(rows, 5000, header=header))
    assert finding.kind == "schedule_not_stepping"
    assert words in finding.summary


@pytest.mark.parametrize(
    "header", ["lr_schedule: constant", "lr_schedule: cosine", "learning_rate: 2e-5", "warmup_steps: 500"]
)
def test_a_schedule_that_does_as_announced(log: Path, header: str) -> None:
    decays = "cosine" in header
    rows = [
        (step, train, val, 2e-5 * (1 - step / 5001) if decays else 2e-5) for step, train, val, _ in falling(3.9, 3.2)
    ]
    assert found(log, owner_log(rows, 5000, header=header)) == []


@pytest.mark.parametrize(
    ("factor", "header", "wanted"),
    [
        (0.1, "learning_rate: 2e-5", ["learning_rate_mismatch"]),
        (8.0, "LEARNING_RATE=2e-05", ["learning_rate_mismatch"]),
        (1.0, "learning_rate: 2e-5", []),
        (1.0, "min_learning_rate: 2e-6\nlearning_rate: 2e-5", []),
        (0.1, "", []),
    ],
)
def test_a_rate_that_differs_from_the_configured_one(log: Path, factor: float, header: str, wanted: list[str]) -> None:
    rows = [(step, train, val, factor * 2e-5) for step, train, val, _ in falling(3.9, 3.2)]
    assert kinds(found(log, owner_log(rows, 5000, header=header))) == wanted


def test_a_rate_printed_with_too_few_decimals_is_none(log: Path) -> None:
    gauss = random.Random(5).gauss
    text = "".join(
        f"step {10 * row} loss {3.9 - row / 200 + gauss(0, 0.02):.3f} lr 0.0000 | ok\n" for row in range(100)
    )
    assert found(log, text) == []


def test_losses_that_repeat_to_the_last_digit(log: Path) -> None:
    rows = [(step, 3.9123, 4.0123, 1e-5) for step in range(0, 5001, 500)]
    (finding,) = found(log, owner_log(rows, 5000, header="dtype: bfloat16"))
    assert finding.kind == "precision_stall"
    assert finding.confidence == 0.9
    assert "pure bf16" in finding.summary


def test_a_held_out_loss_that_stands_still_while_the_training_loss_falls_is_of_other_weights(log: Path) -> None:
    losses = [3.4 - index / 100 for index in range(60)]
    (finding,) = found(log, trainer_log(losses, evals=dict.fromkeys(range(10, 61, 10), 3.5123)))
    assert finding.kind == "validation_stands_still"


def test_no_gradient(log: Path) -> None:
    noise = random.Random(2).gauss
    losses = [3.9 + noise(0, 0.05) for _ in range(100)]
    assert kinds(found(log, trainer_log(losses, norm=0.0)))[0] == "detached_gradients"
    assert "detached_gradients" not in kinds(found(log, trainer_log(losses, norm=0.3)))


@pytest.mark.parametrize(("start", "is_wrong"), [(-5.0, True), (-0.2, False)])
def test_minus_the_likelihood_s_loss_is_named(log: Path, start: float, is_wrong: bool) -> None:
    findings = found(log, trainer_log([start * (1 + index / 10) for index in range(20)]))
    assert ("wrong_objective" in kinds(findings)) is is_wrong
    assert not is_wrong or findings[0].summary.startswith("the loss is negative, down to -14.5")


def test_no_gradient_and_no_loss_are_masked_labels(log: Path) -> None:
    masked, cut = (found(log, trainer_log([loss] * 20, norm=0.0))[0] for loss in (0.0, 4.5))
    assert masked.kind == cut.kind == "detached_gradients"
    assert masked.next_step.startswith("look at the labels, which must all be -100")
    assert cut.next_step.startswith("look for detach()")


@pytest.mark.parametrize(
    ("start", "vocab_size", "cause"),
    [
        (9.2, 50_257, "labels shifted twice"),
        (10.3, 50_257, "padding that is scored"),
        (11.2, 2048, "another tokenizer's ids, which give more than uniform guessing (7.6)"),
        (15.0, 2048, "a loss that is a sum"),
    ],
)
def test_the_cause_of_a_high_start_fits_its_number(log: Path, start: float, vocab_size: int, cause: str) -> None:
    losses = [start - 0.05 * index for index in range(20)]
    [finding, *_] = found(log, trainer_log(losses), Context(vocab_size=vocab_size, pretrained=True))
    assert finding.kind == "impossible_initial_loss"
    assert f"What fits: {cause}" in finding.summary


@pytest.mark.parametrize("rate", [3e-2, 0.3])
def test_a_rate_that_ruins_a_pretrained_model_before_the_first_row_is_no_fault_in_its_labels(
    log: Path, rate: float
) -> None:
    # As recorded from a Trainer at a rate of 0.03: the first row is the mean of ten ruinous steps.
    losses = [4.8 + 2.0 * math.exp(-index / 5) for index in range(30)]
    [finding] = found(log, trainer_log(losses, rate=rate), Context(vocab_size=1000, pretrained=True))
    assert finding.kind == "collapse"
    assert "ruins its weights in the first steps" in finding.summary
    assert finding.next_step.startswith("a fine-tune takes 1e-5 to 1e-4")


def test_a_lower_rate_that_is_advised_is_no_ruinous_one() -> None:
    high = diagnose(recorded_run("hot_lr0.3_s0"), context=RECORDED)[0]
    assert high.next_step.startswith("try 3e-03 and 1e-03")
    diverged = diagnose(recorded_run("hot_ramp_s0"), context=RECORDED)[0]
    assert "try 3e-03 or less in place of 1.3e+01" in diverged.next_step


@pytest.mark.parametrize(
    ("loss", "norm", "summary"),
    [
        ("nan", 1.0, "the training loss is nan from step 510 on"),
        ("0.0", math.nan, "the gradient norm is nan from step 510"),
    ],
)
def test_losses_that_are_lost(log: Path, loss: str, norm: float, summary: str) -> None:
    good = trainer_log([1.9 - index / 500 for index in range(50)]).splitlines()
    bad = [
        f"{{'step': {step}, 'loss': {loss}, 'grad_norm': {norm}, 'learning_rate': 1e-5}}"
        for step in range(510, 700, 10)
    ]
    (finding, *_) = found(log, "\n".join(good + bad) + "\n")
    assert finding.kind == "nonfinite"
    assert summary in finding.summary
    assert finding.steps == (510, 690)


def test_a_held_out_loss_that_is_lost_alone_is_the_evaluations(log: Path) -> None:
    losses = [3.4 - index / 300 for index in range(60)]
    (finding,) = found(log, trainer_log(losses, evals=dict.fromkeys(range(10, 61, 10), math.nan)))
    assert "the validation loss is nan from step 100 on" in finding.summary
    assert "the evaluation is at fault" in finding.next_step


def test_a_policys_loss_in_four_decimals_is_no_stall(log: Path) -> None:
    assert found(log, trainer_log([0.0, *[0.0001] * 40, *[0.0002] * 20], rate=1e-6)) == []


def test_a_sum_over_a_batch_beside_a_mean_is_no_loss_that_is_too_low(log: Path) -> None:
    losses = [16 * (3.3 + 7 * math.exp(-index / 30)) for index in range(150)]
    (finding, *_) = found(log, trainer_log(losses, evals={75: 3.9, 150: 3.4}))
    assert finding.kind == "impossible_initial_loss"


def test_a_loss_of_0_with_a_gradient_is_a_policys(log: Path) -> None:
    gauss = random.Random(0).gauss
    assert found(log, trainer_log([abs(gauss(0, 0.01)) for _ in range(60)], rate=5e-7)) == []
    assert found(log, trainer_log([0.0] * 40, norm=0.35)) == []


def test_one_batch_without_a_loss_is_no_end(log: Path) -> None:
    losses = [3.5 - index / 1000 for index in range(200)]
    losses[77] = math.nan
    (finding,) = found(log, trainer_log(losses))
    assert finding.kind == "nonfinite"
    assert "at 1 of 200 rows" in finding.summary
    assert finding.confidence < 0.9


def test_validation_that_is_training(log: Path) -> None:
    rows = [(step, train, train, rate) for step, train, _, rate in falling(3.9, 3.2)]
    assert kinds(found(log, owner_log(rows, 5000))) == ["validation_is_training"]


def test_a_suspicious_gap_between_the_losses(log: Path) -> None:
    rows = [(step, train, train - 0.9, rate) for step, train, _, rate in falling(3.9, 3.2)]
    assert kinds(found(log, owner_log(rows, 5000))) == ["train_val_gap"]
    # Few tokens are all easy by chance.
    assert kinds(found(log, owner_log(rows, 5000), Context(eval_tokens=4096))) == ["train_val_gap"]
    assert kinds(found(log, owner_log(rows, 5000), Context(eval_tokens=256))) == []
    dropout = [(step, train + 0.3, train, rate) for step, train, _, rate in falling(3.9, 3.2)]
    assert found(log, owner_log(dropout, 5000)) == []


def test_a_validation_loss_that_is_far_above_from_the_start(log: Path) -> None:
    losses = [3.0 - index / 120 for index in range(60)]
    far = {index: 5.2 - index / 500 for index in range(1, 61, 6)}
    (finding,) = found(log, trainer_log(losses, evals=far))
    assert finding.kind == "train_val_gap"
    assert "2.20 nats/token and more above" in finding.summary
    # Once it is a multiple it is the one that is a sum, and the training loss is told as it was recorded.
    (finding, *_) = found(log, trainer_log(losses, evals={index: 10 * losses[index - 1] for index in far}))
    assert "train 3.0000, validation 30.0000" in finding.evidence


@pytest.mark.parametrize("first_row", [0, 50])
def test_one_that_a_fast_fall_leaves_behind_was_not_far_above_from_the_start(log: Path, first_row: int) -> None:
    rows = []
    for step in range(1001):
        rows += [f"step {step} loss {0.3 + 8.7 * math.exp(-step / 30):.4f}"] if step >= first_row else []
        rows += [f"step {step} val_loss {4.2 + step / 1000 if step else 9.0:.4f}"] if step % 250 == 0 else []
    assert "train_val_gap" not in kinds(found(log, "\n".join(rows) + "\n"))


def test_evaluations_that_rank_nothing(log: Path) -> None:
    gauss = random.Random(3).gauss
    rows = [(step, 3.3 + gauss(0, 0.01), 3.4 + gauss(0, 0.3), 1e-5) for step in range(0, 5001, 250)]
    assert kinds(found(log, owner_log(rows, 5000))) == ["eval_noise"]


def test_a_restart_that_lost_the_weights(log: Path) -> None:
    before = [(0, 3.9, 4.0, 1e-5), (500, 3.6, 3.7, 1e-5), (1000, 3.4, 3.5, 1e-5), (1500, 3.3, 3.4, 1e-5)]
    lost = [(1500, 3.9, 4.0, 1e-5), (2000, 3.6, 3.7, 1e-5), (2500, 3.4, 3.5, 1e-5)]
    kept = [(1500, 3.3, 3.4, 1e-5), (2000, 3.25, 3.35, 1e-5), (2500, 3.2, 3.3, 1e-5)]
    (finding,) = found(log, owner_log(before, 2500) + owner_log(lost, 2500))
    assert finding.kind == "resume_jump"
    assert "the weights were initialized again" in finding.summary
    assert found(log, owner_log(before, 2500) + owner_log(kept, 2500)) == []


def test_an_earlier_run_in_the_log_adds_what_is_new(log: Path) -> None:
    failed = [
        (step, 3.9 if step == 0 else math.nan, 4.0 if step == 0 else math.nan, 1e-3) for step in range(0, 2001, 500)
    ]
    log.write_text(owner_log(failed, 5000) + owner_log(falling(3.9, 3.2), 5000))
    report = report_of_trace(read_training_log(log), context=Context())
    (finding,) = report.findings
    assert finding.kind == "nonfinite"
    assert finding.summary.startswith("in run 1 of the 2 in this log")


def test_a_healthy_log_that_ends_early_is_healthy_so_far(log: Path) -> None:
    log.write_text(owner_log(falling(3.9, 3.2)[:6], 5000))
    report = report_of_trace(read_training_log(log), context=Context())
    assert report.findings == ()
    assert report.is_healthy
    assert report.headline.startswith("Nothing wrong found in what")
    assert "step 2500 of 5000" in report.headline


def test_a_healthy_report(log: Path) -> None:
    log.write_text(owner_log(falling(3.9, 3.2), 5000))
    report = report_of_trace(read_training_log(log), context=Context())
    assert report.headline.startswith("Nothing wrong found in ")
    assert plain_text(report).splitlines()[1] == "log of steps 0 to 5000 of 5000: 11 evaluations, 11 training losses"
    document = to_json(report)
    assert document["healthy"] is True
    assert document["findings"] == []


def test_the_report_as_json(log: Path) -> None:
    log.write_text(owner_log(STORY, 5000))
    document = json.loads(
        json.dumps(to_json(report_of_trace(read_training_log(log), context=Context())), allow_nan=False)
    )
    assert document["healthy"] is False
    assert document["headline"].startswith("These losses cannot come")
    first = document["findings"][0]
    assert first["kind"] == "impossible_initial_loss"
    assert (first["first_step"], first["last_step"]) == (0, 2500)
    assert first["confidence_word"] == "likely"
    assert all(finding["evidence"] and finding["next_step"] for finding in document["findings"])


@pytest.mark.parametrize("width", [24, 60, 120])
def test_the_report_fits_the_terminal(log: Path, width: int) -> None:
    log.write_text(owner_log(STORY, 5000))
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(report_of_trace(read_training_log(log), context=Context())))
    lines = capture.get().splitlines()
    assert max(len(line) for line in lines) <= width
    # Nothing was cut off: every word of the headline is there.
    assert "pretrained" in capture.get()


def test_an_empty_trace_has_no_findings() -> None:
    nothing: tuple[float | None, ...] = ()
    trace = RunTrace(
        source="empty",
        origin="log",
        steps=(),
        train_loss=nothing,
        val_loss=nothing,
        grad_norm=nothing,
        learning_rate=nothing,
        step_time_s=nothing,
    )
    assert diagnose(trace, context=Context()) == []


def settling(fall: float, *, to: float, pace: float, noise: float, rows: int) -> list[float]:
    """Return losses that fall by so much, exponentially."""
    gauss = random.Random(0).gauss
    return [to + fall * math.exp(-row / pace) + gauss(0, noise) for row in range(rows)]


def stepwise(losses: list[float], *, between: dict[int, str] | None = None, rate: float = 3e-4) -> str:
    """Return a log of a row a step, and of other lines before some."""
    row = "{{'loss': {:.4f}, 'grad_norm': 1.0, 'learning_rate': {}, 'step': {}}}\n"
    other = between or {}
    return "".join(other.get(step, "") + row.format(loss, rate, step) for step, loss in enumerate(losses, start=1))


def test_a_loss_scaler_that_goes_on_skipping_steps_is_told_and_one_that_finds_its_scale_is_not(log: Path) -> None:
    losses = settling(4.0, to=3.5, pace=300, noise=0.03, rows=600)
    skipped = "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768\n"
    assert found(log, stepwise(losses, between=dict.fromkeys(range(1, 20), skipped))) == []
    (finding,) = found(log, stepwise(losses, between=dict.fromkeys(range(1, 600, 20), skipped)))
    assert (finding.kind, finding.steps) == ("nonfinite", (1, 600))
    assert "30 lines of the log name an overflow, in 600 steps" in finding.evidence


@pytest.mark.parametrize(("rise_steps", "kept"), [(12, True), (1, True), (12, False)])
def test_a_spike_that_built_up_and_is_never_made_good_is_the_optimizers(log: Path, rise_steps: int, kept: bool) -> None:
    gauss = random.Random(0).gauss
    levels = [4.0 + 2.9 * (1 + step / 20) ** -0.6 for step in range(1200)]
    rises = [min(max(0, step - 599) / rise_steps, 1.0) * 1.5 for step in range(1200)]
    left = 0.25 if kept else 0.0
    heals = [left + (1 - left) * math.exp(-max(0, step - 599 - rise_steps) / 25) for step in range(1200)]
    losses = [level + rise * heal + gauss(0, 0.05) for level, rise, heal in zip(levels, rises, heals, strict=True)]
    findings = found(log, stepwise(losses))
    poisoned = kept and rise_steps > 1
    assert kinds(findings) == ["spike", "poisoned_optimizer"][: 1 + poisoned]
    if poisoned:
        assert findings[1].steps == (703, 1200)


def test_a_spike_whose_gradient_norm_jumped_before_is_measured_where_the_loss_is(log: Path) -> None:
    rises = [3.2 * math.exp(-(step - 600) / 40) if step >= 600 else 0.0 for step in range(1200)]
    losses = [
        loss + rise for loss, rise in zip(settling(7.0, to=3.5, pace=150, noise=0.05, rows=1200), rises, strict=True)
    ]
    text = stepwise(losses)
    for step in range(590, 610):
        text = text.replace(
            f"1.0, 'learning_rate': 0.0003, 'step': {step}}}", f"15.0, 'learning_rate': 0.0003, 'step': {step}}}"
        )
    (finding,) = found(log, text)
    assert (finding.kind, finding.steps and finding.steps[0]) == ("spike", 601)


def test_a_rise_of_hundreds_of_steps_that_comes_back_is_told(log: Path) -> None:
    hump = [2 * max(0.0, 1 - abs(step - 800) / 200) for step in range(1500)]
    losses = settling(7.0, to=3.5, pace=150, noise=0.05, rows=1500)
    (finding,) = found(log, stepwise([loss + rise for loss, rise in zip(losses, hump, strict=True)]))
    assert finding.kind == "spike"
    assert finding.steps is not None
    assert finding.steps[0] == pytest.approx(660, abs=30)
    assert finding.steps[1] == pytest.approx(970, abs=30)


def test_a_collapse_that_an_evaluation_sees_at_once_is_no_spike(log: Path) -> None:
    levels = [3.7 + 7 * math.exp(-step / 200) if step < 1500 else 7.4 for step in range(0, 3001, 50)]
    evals = {index: level + 0.02 for index, level in enumerate(levels, start=1) if index % 5 == 1}
    assert kinds(found(log, trainer_log(levels, evals=evals))) == ["divergence"]


def test_a_spike_at_a_moderate_rate_is_looked_for_in_the_text_where_it_was_read(log: Path) -> None:
    losses = settling(0.3, to=3.3, pace=300, noise=0.02, rows=1000)
    losses[500:] = [loss + 1.2 * math.exp(-step / 10) for step, loss in enumerate(losses[500:])]
    header = {1: "batch_size: 8, block_size: 128\n"}
    (finding,) = found(log, stepwise(losses, between=header, rate=3e-5), Context(pretrained=True))
    assert finding.kind == "spike"
    where = "check the text that was read there, which is token 513,024 of training if it is read in order"
    assert finding.next_step.startswith(where)
    assert 501 * 8 * 128 == 513_024


def test_random_weights_that_have_learned_little_in_thousands_of_steps_are_slow_at_any_rate(log: Path) -> None:
    def text(end: float, steps: int, start: float = 10.95) -> str:
        rows = range(0, steps + 1, 20)
        return "".join(f"step {step} loss {start - (start - end) * step / steps:.4f} | ok\n" for step in rows)

    (finding,) = found(log, text(9.9, 3000))
    assert (finding.kind, confidence_word(finding.confidence)) == ("plateau", "possible")
    assert found(log, text(9.9, 1000)) == found(log, text(8.9, 3000)) == []
    # No language model's, for all that is known.
    assert found(log, text(11.0, 3000, start=12.2)) == []


def test_where_no_learning_rate_is_recorded_the_cause_of_a_plateau_is_not_guessed(log: Path) -> None:
    losses = settling(3.2, to=7.6, pace=20, noise=0.02, rows=300)
    text = "".join(f"step {10 * row}: train loss {loss:.4f}\n" for row, loss in enumerate(losses))
    (finding,) = found(log, text, Context(vocab_size=50_257))
    assert finding.kind == "plateau"
    assert "without the learning rate the cause cannot be told" in finding.summary
    assert "log the learning rate" in finding.next_step


GPT2, KNOWN, RANDOM = "model: gpt2", "vocab_size: 50257", Context(pretrained=False, vocab_size=50_257)
LOW, HIGH = 5e-5, 6e-4
"""Rates of a fine-tune and of random weights."""


@pytest.mark.parametrize(
    ("first", "start", "end", "rate", "known", "confidence"),
    [
        # A known vocabulary: random weights start at 10.82, English in a loaded GPT-2 at 3 to 5.
        (0, 10.8, 4.0, LOW, GPT2, 0.7),
        (0, 10.8, 4.0, HIGH, GPT2, 0.0),
        (0, 10.8, 4.0, LOW, KNOWN, 0.0),
        (0, 5.9, 4.0, LOW, KNOWN, 0.0),
        (0, 9.23, 4.0, LOW, KNOWN, 0.95),
        (0, 7.0, 5.8, LOW, KNOWN, 0.75),
        (0, 7.0, 4.0, LOW, KNOWN, 0.0),
        (0, 9.9, 4.0, HIGH, KNOWN, 0.95),
        (1, 9.9, 4.0, HIGH, KNOWN, 0.0),  # one step at such a rate takes off a nat
        (1, 9.7, 4.0, HIGH, KNOWN, 0.95),
        (10, 9.7, 4.0, HIGH, KNOWN, 0.0),
        # GPT-2's shape with a tokenizer of 8,192 or 4,096 tokens of its own starts at ln of that.
        (0, 9.01, 4.0, None, GPT2, 0.7),
        (0, 9.01, 4.0, HIGH, GPT2, 0.0),
        (0, 8.32, 4.0, None, GPT2, 0.0),
        (0, 8.0, 4.0, None, GPT2, 0.95),
        # Rows that count no steps.
        (None, 9.2, 4.0, LOW, KNOWN, 0.75),
        (None, 7.2, 4.0, LOW, KNOWN, 0.0),
        # A vocabulary that nobody names: random weights of some vocabulary may start anywhere.
        (0, 9.23, 4.0, LOW, "", 0.85),
        (0, 9.5, 4.0, None, "", 0.7),
        (0, 9.5, 6.0, None, "", 0.8),
        (0, 9.23, 4.0, HIGH, "", 0.0),  # 10,000 tokens
        (0, 9.23, 6.5, HIGH, "", 0.8),
        (0, 8.0, 6.5, HIGH, "", 0.8),
        (0, 8.0, 4.0, HIGH, "", 0.0),
        (0, 12.45, 4.0, LOW, "", 0.0),  # 256,000 tokens
        (0, 10.4, 4.0, HIGH, "", 0.0),
        (0, 6.9, 5.8, LOW, "", 0.42),
        (0, 6.9, 4.0, LOW, "", 0.0),
        (1500, 7.0, 6.5, LOW, "", 0.75),
        (1500, 7.0, 4.5, LOW, "", 0.0),
        (1500, 7.0, 6.5, HIGH, "", 0.0),
        # What the weights were is told.
        (0, 8.4, 3.0, HIGH, RANDOM, 0.95),
        (0, 10.9, 3.0, HIGH, RANDOM, 0.0),
        (0, 7.0, 4.0, LOW, Context(pretrained=True), 0.97),
        (50, 7.0, 4.0, 2e-3, Context(pretrained=True), 0.6),  # the rate may have thrown it out
        (0, 6.0, 4.0, LOW, Context(pretrained=True), 0.0),
    ],
)
def test_how_sure_a_first_loss_makes_that_the_set_up_is_wrong(
    log: Path, first: int | None, start: float, end: float, rate: float | None, known: str | Context, confidence: float
) -> None:
    header, context = (known, Context()) if isinstance(known, str) else ("", known)
    losses = [end + (start - end) * math.exp(-row / 4) for row in range(40)]
    rows = [
        ("" if first is None else f"step {first + 10 * row}: ")
        + f"train loss {loss:.4f}"
        + (f" lr {rate}" if rate else "")
        for row, loss in enumerate(losses)
    ]
    told = [one for one in found(log, "\n".join([header, *rows, ""]), context) if one.kind == "impossible_initial_loss"]
    assert [one.confidence for one in told] == [confidence] * bool(confidence)
    if told and context.pretrained is False:
        assert "these losses cannot come from random weights, with which it was to begin" in told[0].summary
