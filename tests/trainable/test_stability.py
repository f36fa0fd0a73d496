"""trainable.stability: every rule with a curve that breaks it and a healthy twin, then the recorded runs."""

import dataclasses
import functools
import json
import math
import random
import runpy
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainable.errors import UserError
from trainable.stability import Finding, StabilityMonitor, StabilityRules, judge_trace, make_rules
from trainable.stability.watches import Window

RATES = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "stability_rates.py"))
TRACES = RATES["load_traces"]()
ENTROPY = 5.66
LN_VOCABULARY = math.log(1024)


def learning(steps: int, *, start: float = LN_VOCABULARY, end: float = 4.0, pace: float = 20.0) -> list[float]:
    """A healthy curve: fast at first, always falling."""
    return [end + (start - end) * (1 + step / pace) ** -0.6 for step in range(steps)]


def noisy(levels: Sequence[float], deviation: float = 0.1, seed: int = 0) -> list[float]:
    draws = random.Random(seed)
    return [level + draws.gauss(0, deviation) for level in levels]


def judge(
    loss: Sequence[float | str],
    grad_norm: Sequence[float | str | None] | None = None,
    step_time_s: Sequence[float | str | None] | None = None,
    *,
    budget_steps: int | None = None,
    from_scratch: bool = True,
    unigram_entropy: float = ENTROPY,
    **more: Any,
) -> list[Finding]:
    return judge_trace(
        loss,
        grad_norm,
        step_time_s,
        budget_steps=budget_steps or len(loss),
        unigram_entropy=unigram_entropy,
        from_scratch=from_scratch,
        **more,
    )


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def stops(findings: list[Finding]) -> list[tuple[str, int]]:
    return [(finding.kind, finding.step) for finding in findings if finding.severity == "stop"]


# --- rules -----------------------------------------------------------------------------------------------------------


def test_make_rules_replaces_the_named_values_and_takes_whole_numbers_for_decimals() -> None:
    rules = make_rules({"slow_ratio": 2, "spike_window_steps": 256})
    assert (rules.slow_ratio, rules.spike_window_steps, rules.spike_sigma) == (2.0, 256, 6.0)
    assert isinstance(rules.slow_ratio, float)
    assert make_rules({}) == StabilityRules()


@pytest.mark.parametrize("spec", dataclasses.fields(StabilityRules), ids=lambda spec: spec.name)
def test_every_rule_refuses_what_is_out_of_its_bounds_or_no_number(spec: dataclasses.Field[Any]) -> None:
    for bad in (spec.metadata["low"] - 1, spec.metadata["high"] * 2 + 1, "6", [6], True, None):
        with pytest.raises(UserError, match=rf"^\[stability\] {spec.name} .* default is {spec.default}\.$"):
            make_rules({spec.name: bad})
    if spec.type is int:
        with pytest.raises(UserError, match="whole number"):
            make_rules({spec.name: getattr(StabilityRules(), spec.name) + 0.5})
    else:
        with pytest.raises(UserError, match=spec.name):
            make_rules({spec.name: math.nan})


def test_an_unknown_rule_gets_a_suggestion() -> None:
    with pytest.raises(
        UserError, match=r"\[stability\] has an unknown key 'spike_sgima'. Did you mean 'spike_sigma'\?"
    ):
        make_rules({"spike_sgima": 5})


@pytest.mark.parametrize(
    "values", [{"spike_min_steps": 200, "spike_window_steps": 128}, {"slow_end_ratio": 1.4, "slow_ratio": 1.3}]
)
def test_rules_that_contradict_each_other_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match="is more than"):
        make_rules(values)


# --- nonfinite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize("at", [0, 5, 99])
def test_a_nonfinite_loss_stops_at_its_step(bad: float | str, at: int) -> None:
    loss: list[float | str] = list(learning(100))
    loss[at] = bad
    assert stops(judge(loss)) == [("nonfinite", at + 1)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, "nan"])
def test_a_nonfinite_gradient_stops_and_an_unrecorded_one_does_not(bad: float | str) -> None:
    grads: list[float | str | None] = [1.0] * 50
    grads[30] = bad
    findings = judge(learning(50), grads)
    assert stops(findings) == [("nonfinite", 31)]
    assert "gradient norm" in findings[0].evidence
    grads[30] = None
    assert judge(learning(50), grads) == []


def test_a_step_that_the_loss_scaler_skipped_does_not_count() -> None:
    loss, grads, skipped = list(learning(50)), [1.0] * 50, [False] * 50
    for at in (0, 1, 2, 30):
        grads[at], skipped[at] = math.inf, True
    loss[30] = math.nan
    assert judge(loss, grads, skipped=skipped) == []
    assert stops(judge(loss, grads)) == [("nonfinite", 1)]


def test_a_loss_scaler_that_never_stops_skipping_is_nonfinite() -> None:
    skipped = [step >= 10 for step in range(100)]
    assert stops(judge([math.nan if skip else 5.0 for skip in skipped], skipped=skipped)) == [("nonfinite", 50)]


def test_a_loss_scaler_that_skips_now_and_then_is_sound() -> None:
    skipped = [step % 2 == 0 for step in range(200)]
    assert judge(learning(200), [math.inf if skip else 1.0 for skip in skipped], skipped=skipped) == []


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_scratch", [True, False])
@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("up", [0.8, 2.0, 5.0])
def test_a_loss_that_jumps_up_and_stays_stops_soon(up: float, deviation: float, from_scratch: bool) -> None:
    loss = noisy([level + (up if step >= 300 else 0) for step, level in enumerate(learning(600))], deviation)
    [(kind, step)] = stops(judge(loss, from_scratch=from_scratch))
    assert kind == "divergence"
    assert 320 <= step <= 360


def test_a_loss_that_climbs_slowly_stops() -> None:
    loss = noisy([level + max(0, step - 300) / 100 for step, level in enumerate(learning(600))])
    [(kind, step)] = stops(judge(loss))
    assert kind == "divergence"
    assert 360 <= step <= 420


def test_a_random_model_that_only_gets_worse_stops() -> None:
    [(kind, step)] = stops(judge(noisy([LN_VOCABULARY + step / 50 for step in range(100)], 0.05)))
    assert kind == "divergence"
    assert step <= 60


@pytest.mark.parametrize("bad_steps", [1, 5, 10, 40])
def test_a_spike_that_heals_does_not_stop(bad_steps: int) -> None:
    def extra(step: int) -> float:
        if step < 300:
            return 0.0
        return 2.2 * math.exp(-(step - 300) / 15) if bad_steps == 40 else 4.0 * (step < 300 + bad_steps)

    findings = judge(noisy([level + extra(step) for step, level in enumerate(learning(600))]))
    assert kinds(findings) == ["spike"]


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("steps", [30, 100, 1000])
def test_noise_alone_does_not_stop(steps: int, deviation: float) -> None:
    for seed in range(3):
        curve = learning(steps, start=4.1, end=3.4)
        assert stops(judge(noisy(curve, deviation, seed), from_scratch=False)) == []


def test_a_pretrained_run_may_rise_a_little_when_a_fresh_optimizer_starts() -> None:
    bump = [4.0 + 0.4 * math.exp(-(((step - 60) / 40) ** 2)) - step / 2000 for step in range(600)]
    for from_scratch in (True, False):
        assert stops(judge(noisy(bump, 0.05), from_scratch=from_scratch)) == []


def test_an_initial_loss_far_above_the_rest_hides_no_divergence() -> None:
    loss = [11.0, 9.0, 7.5, 6.5, 6.0, *learning(295, start=5.5), *[6.5] * 100]
    [(kind, step)] = stops(judge(noisy(loss, 0.05), budget_steps=10_000))
    assert kind == "divergence"
    assert step <= 360


def test_a_pretrained_model_that_fits_badly_may_wander_about_its_initial_loss() -> None:
    loss = noisy([6.2 + min(step / 100, 1) * 0.35 for step in range(300)], 0.05)
    assert stops(judge(loss, from_scratch=False)) == []
    assert kinds(judge(loss))[-1] == "divergence"


def test_easy_and_hard_batches_in_runs_do_not_stop() -> None:
    draws = random.Random(3)
    for _ in range(5):
        loss, drift = [], 0.0
        for level in learning(1500, start=4.1, end=3.4):
            drift = 0.6 * drift + draws.gauss(0, 0.3)
            loss.append(level + drift)
        assert stops(judge(loss, from_scratch=False)) == []


# --- floor -----------------------------------------------------------------------------------------------------------


def collapsed(steps: int) -> list[float]:
    return [5.8 + (LN_VOCABULARY - 5.8) * math.exp(-step / 8) for step in range(steps)]


def test_a_collapsed_run_stops_once_a_third_of_the_budget_is_spent() -> None:
    assert stops(judge(noisy(collapsed(600)))) == [("floor", 200)]


@pytest.mark.parametrize("budget_steps", [40, 80])
def test_a_short_run_has_no_time_for_a_floor(budget_steps: int) -> None:
    assert judge(noisy(collapsed(budget_steps))) == []


def test_only_a_run_from_scratch_has_a_floor_and_only_where_the_entropy_is_known() -> None:
    loss = noisy(collapsed(600))
    assert stops(judge(loss, from_scratch=False)) == []
    assert stops(judge(loss, unigram_entropy=math.nan)) == []
    assert stops(judge(loss, unigram_entropy=6.2)) == []


def test_a_run_that_learns_and_one_that_falls_through_late_are_not_at_the_floor() -> None:
    assert judge(noisy(learning(600))) == []
    warm_up = [LN_VOCABULARY - 0.2 * step / 150 for step in range(150)]
    assert stops(judge(noisy(warm_up + learning(450, start=6.7, pace=60), 0.05))) == []


def test_a_run_at_a_tiny_rate_is_slow_and_not_at_the_floor() -> None:
    findings = judge(noisy([LN_VOCABULARY - 0.4 * step / 600 for step in range(600)], 0.01))
    assert kinds(findings) == ["plateau"]


def test_a_loss_that_rises_is_not_said_to_fall_by_less_than_nothing() -> None:
    rising = judge(noisy([LN_VOCABULARY - 0.5 + 0.3 * step / 600 for step in range(600)], 0.01))
    assert "it rose by 0." in rising[-1].evidence
    assert "it fell by 0.0" in judge(noisy(collapsed(600)))[-1].evidence


def test_a_run_from_scratch_that_learns_nothing_at_all_is_stopped() -> None:
    assert stops(judge(noisy([LN_VOCABULARY] * 600, 0.01))) == [("floor", 200)]


# --- spike -----------------------------------------------------------------------------------------------------------


def test_each_spike_is_one_flag() -> None:
    loss = noisy(learning(600))
    for at, length in ((200, 1), (300, 8), (450, 2)):
        for step in range(at, at + length):
            loss[step] += 2.0
    assert [(f.kind, f.step) for f in judge(loss)] == [("spike", 201), ("spike", 301), ("spike", 451)]


def test_a_gradient_spike_without_a_loss_spike_is_a_flag() -> None:
    grads = noisy([1.0] * 300, 0.1)
    grads[200] = 5.0
    [finding] = judge(noisy(learning(300)), grads)
    assert (finding.kind, finding.step) == ("spike", 201)
    assert finding.evidence.startswith("gradient norm 5 against 0.99")


def test_small_and_early_outliers_are_no_spikes() -> None:
    quiet = [5.0 - step / 10_000 for step in range(300)]
    quiet[200] += 0.09
    assert judge(quiet, from_scratch=False, budget_steps=10_000) == []
    early = noisy(learning(60))
    early[40] += 3.0
    assert judge(early) == []


def test_a_spike_does_not_hide_a_smaller_one_soon_after() -> None:
    loss, grads = noisy(learning(400, start=4.5), 0.05), noisy([1.0] * 400, 0.05)
    loss[200], loss[240] = loss[200] + 6.0, loss[240] + 1.0
    grads[300], grads[340] = 50.0, 4.0
    assert [f.step for f in judge(loss, grads, from_scratch=False)] == [201, 241, 301, 341]


def test_a_window_forgets_what_left_it() -> None:
    window = Window(8)
    for value in [1e9, -1e9, *[0.1 * step for step in range(30)]]:
        window.append(value)
    assert list(window.values) == [0.1 * step for step in range(22, 30)]
    mean, deviation = window.mean_and_deviation()
    assert mean == pytest.approx(2.55, rel=1e-12)
    assert deviation == pytest.approx(statistics.pstdev(window.values), rel=1e-9)


def test_a_new_level_is_one_spike() -> None:
    loss = noisy([level + (0.45 if step >= 300 else 0) for step, level in enumerate(learning(600))], 0.03)
    assert kinds(judge(loss)) == ["spike"]


# --- plateau ---------------------------------------------------------------------------------------------------------


def test_a_flat_loss_is_a_plateau_once_and_a_falling_one_is_none() -> None:
    curve = learning(600)
    flat = [curve[min(step, 150)] for step in range(600)]
    [finding] = judge(noisy(flat))
    assert finding.kind == "plateau"
    assert 300 <= finding.step <= 480
    assert judge(noisy(curve)) == []


def test_the_flat_end_of_a_decaying_schedule_is_no_plateau() -> None:
    curve = learning(600)
    assert judge(noisy([curve[min(step, 430)] for step in range(600)], 0.05)) == []


def test_a_loss_near_the_unigram_entropy_is_a_plateau_though_it_falls() -> None:
    doubled = [5.25 + 1.68 * math.exp(-step / 30) + 0.2 * (1 - step / 600) for step in range(600)]
    for from_scratch in (True, False):
        [finding] = judge(noisy(doubled), from_scratch=from_scratch)
        assert (finding.kind, finding.step) == ("plateau", 400)
        assert "unigram entropy of 5.660" in finding.evidence


def test_a_pretrained_model_that_still_improves_a_little_is_on_no_plateau() -> None:
    assert judge(noisy(learning(600, start=4.1, end=3.5), 0.05), from_scratch=False) == []


def test_a_pretrained_model_may_improve_by_less() -> None:
    loss = noisy([4.0 - 0.09 * step / 600 for step in range(600)], 0.005)
    assert kinds(judge(loss)) == ["plateau"]
    assert judge(loss, from_scratch=False) == []


# --- slow and stall --------------------------------------------------------------------------------------------------


def timed(times_s: list[float]) -> list[tuple[str, int]]:
    loss = noisy(learning(len(times_s)), 0.05)
    return [(f.kind, f.step) for f in judge(loss, None, times_s, budget_steps=100_000)]


def test_the_storys_slowdown_is_one_flag() -> None:
    times_s = noisy([1 / 1.05] * 200 + [1 / 0.62] * 400, 0.05)
    [(kind, step)] = timed(times_s)
    assert kind == "slow"
    assert 212 <= step <= 216


def test_steady_steps_compilation_evaluations_and_checkpoints_are_no_flags() -> None:
    times_s = noisy([1.0] * 600, 0.05)
    times_s[0], times_s[1] = 60.0, 8.0
    for step in range(49, 600, 50):
        times_s[step] += 12.0
    assert timed(times_s) == []


def test_the_baseline_is_the_runs_fastest_window_and_not_its_first() -> None:
    assert timed([0.3] * 100 + [0.1] * 200 + [0.2] * 100) == [("slow", 313)]


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0, -1.0])
def test_impossible_step_times_are_left_out(bad: float) -> None:
    monitor = monitor_of_600()
    for step in range(1, 101):
        seconds = bad if step % 3 else 1.0
        assert monitor.update(step=step, loss=4.0, grad_norm=None, step_time_s=seconds) == ()
    assert monitor.state_dict()["speed"]["times_s"] == [1.0] * 25


def test_a_laptops_sleep_is_one_stall() -> None:
    times_s = [1.0] * 300
    times_s[150] = 3600.0
    assert timed(times_s) == [("stall", 151)]


def test_speed_that_comes_and_goes_is_one_flag_and_a_later_slowdown_another() -> None:
    flapping = ([0.1] * 30 + [0.3] * 30) * 5
    assert timed([0.1] * 100 + flapping + [0.1] * 200 + [0.3] * 50) == [("slow", 143), ("slow", 613)]


# --- poisoned optimizer ----------------------------------------------------------------------------------------------


def test_a_rise_that_built_up_and_stays_is_the_optimizers_and_a_sudden_one_is_not() -> None:
    def curve(rise_steps: int) -> list[float]:
        rises = [min(max(0, step - 299) / rise_steps, 1.0) * 1.5 for step in range(600)]
        heals = [0.25 + 0.75 * math.exp(-max(0, step - 299 - rise_steps) / 25) for step in range(600)]
        return noisy([a + b * c for a, b, c in zip(learning(600), rises, heals, strict=True)], 0.05)

    assert kinds(judge(curve(12))) == ["spike", "poisoned_optimizer"]
    assert kinds(judge(curve(1))) == ["spike"]


@pytest.mark.parametrize("rises", [[1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.7], [0.6, 1.5, 2.0]])
def test_a_rise_that_came_at_once_or_within_few_steps_is_not_the_optimizers(rises: list[float]) -> None:
    extra = [0.0] * 300 + rises + [0.4] * (300 - len(rises))
    loss = noisy([level + more for level, more in zip(learning(600), extra, strict=True)], 0.05)
    assert kinds(judge(loss)) == ["spike"]


# --- the monitor and judge_trace -------------------------------------------------------------------------------------


def test_judge_trace_stops_at_the_first_stop_and_a_monitor_reports_each_stop_once() -> None:
    loss = noisy([*learning(300), *[9.0] * 300])
    loss[400] = math.nan
    assert [f.severity for f in judge(loss)] == ["flag", "stop"]
    monitor = StabilityMonitor(budget_steps=600, unigram_entropy=ENTROPY, from_scratch=True)
    found: list[Finding] = []
    for step, value in enumerate(loss + [math.nan] * 20, 1):
        found += monitor.update(step=step, loss=value, grad_norm=1.0, step_time_s=1.0)
    assert Counter(f.kind for f in found if f.severity == "stop") == {"divergence": 1, "nonfinite": 1}


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        judge([1.0, 2.0, 3.0], [1.0, 1.0])


def test_an_empty_trace_has_no_findings() -> None:
    assert judge([], [], [], budget_steps=10) == []


def monitor_of_600() -> StabilityMonitor:
    return StabilityMonitor(budget_steps=600, unigram_entropy=ENTROPY, from_scratch=True)


def feed(monitor: StabilityMonitor, trace: dict[str, Any], begin: int, end: int) -> list[Finding]:
    found: list[Finding] = []
    for at in range(begin, min(end, len(trace["loss"]))):
        loss, grad, seconds = float(trace["loss"][at]), float(trace["gn"][at]), float(trace["dt"][at])
        found += monitor.update(step=at + 1, loss=loss, grad_norm=grad, step_time_s=seconds)
    return found


@pytest.mark.parametrize(
    "name", ["gradfault1000_s0", "hot_ramp_s1", "plateau_lrzero_s0", "bad_ngram10_s1", "hot_lr1.0_s0"]
)
def test_a_resumed_monitor_judges_as_one_that_never_stopped(name: str) -> None:
    trace = next(trace for trace in TRACES if trace["name"] == name)
    whole = monitor_of_600()
    expected = feed(whole, trace, 0, 600)
    for cut in (0, 1, 4, 5, 19, 20, 21, 40, 63, 64, 65, 127, 128, 129, 200, 300, 301, 302, 310, 321, 400, 599):
        before, after = monitor_of_600(), monitor_of_600()
        first = feed(before, trace, 0, cut)
        after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
        assert after.state_dict() == before.state_dict()
        assert first + feed(after, trace, cut, 600) == expected
        assert after.state_dict() == whole.state_dict()


def test_a_state_is_a_copy() -> None:
    monitor = monitor_of_600()
    feed(monitor, TRACES[0], 0, 100)
    state = monitor.state_dict()
    text = json.dumps(state)
    feed(monitor, TRACES[0], 100, 200)
    assert json.dumps(state) == text
    other = monitor_of_600()
    feed(other, TRACES[1], 0, 150)
    other.load_state_dict(state)
    assert json.dumps(other.state_dict()) == text
    feed(other, TRACES[0], 100, 200)
    assert json.dumps(state) == text


@pytest.mark.parametrize("part", ["level", "spike", "speed", "skips"])
def test_a_state_of_another_version_is_refused(part: str) -> None:
    state = monitor_of_600().state_dict()
    del state[part]
    with pytest.raises(UserError, match=rf"another version .*{part}"):
        monitor_of_600().load_state_dict(state)
    state = monitor_of_600().state_dict()
    state["level"]["surprise"] = 1
    with pytest.raises(UserError, match="surprise"):
        monitor_of_600().load_state_dict(state)


any_float = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.lists(
        st.tuples(any_float, st.none() | any_float, st.none() | any_float, st.booleans()), min_size=1, max_size=60
    ),
    repeats=st.integers(1, 8),
    budget_steps=st.integers(1, 500),
    unigram_entropy=any_float,
    from_scratch=st.booleans(),
)
def test_no_numbers_make_it_raise_or_flood(
    pattern: list[tuple[float, float | None, float | None, bool]],
    repeats: int,
    budget_steps: int,
    unigram_entropy: float,
    from_scratch: bool,
) -> None:
    monitor = StabilityMonitor(budget_steps=budget_steps, unigram_entropy=unigram_entropy, from_scratch=from_scratch)
    found: list[Finding] = []
    for step, (loss, grad, seconds, skipped) in enumerate(pattern * repeats, 1):
        found += monitor.update(step=step, loss=loss, grad_norm=grad, step_time_s=seconds, skipped=skipped)
    json.dumps(monitor.state_dict(), allow_nan=False)
    assert_no_flood(found, len(pattern) * repeats)


def assert_no_flood(found: list[Finding], steps: int) -> None:
    counts = Counter(finding.kind for finding in found)
    assert max((counts[kind] for kind in ("nonfinite", "divergence", "floor")), default=0) <= 1
    assert all(counts[kind] <= 1 + steps // 25 for kind in ("spike", "stall", "slow", "plateau", "poisoned_optimizer"))


@pytest.mark.parametrize("every", [1, 2, 7, 24, 30])
def test_spikes_and_stalls_by_the_dozen_do_not_flood(every: int) -> None:
    loss, times_s = noisy([4.0] * 2000), [1.0] * 2000
    for step in range(200, 2000, every):
        loss[step] *= 1 + step % 3
        times_s[step] = 1000.0
    found = judge(loss, loss, times_s, from_scratch=False, budget_steps=4000)
    assert_no_flood(found, 2000)
    assert kinds(found)


# --- the recorded runs -----------------------------------------------------------------------------------------------


def judged(**more: Any) -> list[Any]:
    return [RATES["judge"](trace, **more) for trace in TRACES]


@functools.cache
def as_judged() -> list[Any]:
    """Every recorded run; judged by the process that looks at one."""
    return judged()


def test_there_is_every_kind_of_run() -> None:
    assert Counter(run.truth for run in as_judged()) == {
        "good": 45,
        "spoilt": 10,
        "nonfinite": 2,
        "diverging": 8,
        "collapsed": 6,
    }


def test_no_good_run_is_stopped_and_none_is_said_to_be_on_a_plateau_or_poisoned() -> None:
    for run in as_judged():
        if run.truth == "good":
            assert run.stop is None, run.name
            assert not {f.kind for f in run.flags} & {"plateau", "poisoned_optimizer"}, run.name


@pytest.mark.parametrize("unigram_entropy", [5.5, 5.6, 5.75, 5.9, math.nan])
@pytest.mark.parametrize("from_scratch", [True, False])
def test_no_good_run_is_stopped_whatever_the_entropy(unigram_entropy: float, from_scratch: bool) -> None:
    runs = judged(unigram_entropy=unigram_entropy, from_scratch=from_scratch)
    assert [run.name for run in runs if run.truth == "good" and run.stop] == []
    assert [run.name for run in runs if run.truth in ("nonfinite", "diverging") and not run.stop] == []


@pytest.mark.parametrize("steps", [30, 60, 90, 120, 150, 200, 300, 400])
def test_no_good_run_is_stopped_when_its_budget_is_short(steps: int) -> None:
    for trace, run in zip(TRACES, as_judged(), strict=True):
        if run.truth == "good":
            assert stops(judge(trace["loss"][:steps], trace["gn"][:steps])) == [], run.name


def test_every_bad_run_is_stopped_by_the_verdict_it_deserves() -> None:
    verdicts = {"nonfinite": "nonfinite", "diverging": "divergence", "collapsed": "floor"}
    for run in as_judged():
        if run.truth in verdicts:
            assert run.stop is not None, run.name
            assert run.stop.kind == verdicts[run.truth], run.name
            if run.truth == "diverging":
                assert run.stop.step - run.onset <= 60, run.name


def test_planted_spikes_are_found_and_few_others() -> None:
    planted = [run for run in as_judged() if run.spike_at]
    assert len(planted) == 16
    assert all(RATES["spike_found"](run) for run in planted)
    elsewhere = sum(
        f.kind == "spike" for run in as_judged() if run.truth == "good" and not run.spike_at for f in run.flags
    )
    steps = sum(run.steps for run in as_judged() if run.truth == "good" and not run.spike_at)
    assert elsewhere / steps < 0.4 / 1000


def test_plateaus_and_poisoned_optimizers_are_flagged() -> None:
    flagged = {run.name: {f.kind for f in run.flags} for run in as_judged()}
    for name, found in flagged.items():
        assert ("plateau" in found) or not name.startswith(("plateau_", "bf16_params_lr1e-5")), name
        assert ("poisoned_optimizer" in found) == name.startswith("gradfault1000"), name


def test_the_benchmark_prints() -> None:
    assert RATES["stops_table"](as_judged()).row_count == 5
    assert RATES["flags_table"](as_judged()).row_count == 5
