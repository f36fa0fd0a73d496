"""Rules about spikes: found, measured, told from what batches differ by, and put into words."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from results.diagnosis.findings import Diagnosis
from results.diagnosis.rules.start import after_hard_settings, is_ruinous, lower_rate
from results.diagnosis.run_view import Curve, RunView, noise_sd
from trainable.stability import DEFAULT_RULES, Finding

SPIKE_RISE = 0.4
"""A rise of less, gone within a few steps, is what batches differ by: it explains nothing."""
SPIKE_NOISE = 6.0
SPARSE_NOISE = 4.0
NOISE_ROWS = 16
"""In a shorter record the spike itself makes up the noise."""
BRIEF_ROWS = 3
BRIEF_RISE = 1.5
BRIEF_NOISE = 10.0
"""A long run has batches 6 standard deviations hard: a rise that is gone after 3 rows, or that the record ends with,
must be larger to count."""
SETTLED_ROWS = 128
"""Rows before a jump that tell the noise."""
HEALED = 0.15
HOT_SCRATCH_LR, HOT_FINE_LR = 2e-3, 3e-4


@dataclass(frozen=True, kw_only=True)
class Spike:
    step: int
    before: float
    peak: float
    peak_step: int
    healed_step: int | None
    last_step: int
    """Of the loss that was looked at."""

    @property
    def rise(self) -> float:
        return self.peak - self.before


def spikes_of(run: RunView) -> list[Spike]:
    curve = run.train
    if not run.is_dense:
        found = _sparse_spikes(run)
        # A row a step is a batch; thinner rows are means, or stand for the steps around them.
        is_each_step = len(curve) > 1 and curve.steps[-1] - curve.steps[0] < 2 * len(curve) and run.unit == "step"
        return [spike for spike in found if _stands_out(curve, spike)] if is_each_step else found
    found = []
    for finding in run.findings:
        if finding.kind in ("spike", "divergence") and (
            not found or finding.step > (found[-1].healed_step or run.last_step)
        ):
            spike = _measured(curve, _onset(curve, finding))
            if _stands_out(curve, spike):
                found.append(spike)
    if not found and len(curve) <= 400:
        # The monitor needs a history as long as its windows.
        return [spike for spike in _sparse_spikes(run) if _stands_out(curve, spike)]
    return found


def _onset(curve: Curve, finding: Finding) -> int:
    """Return the row where a rise began that the monitor has called: a divergence, which here has come back, late."""
    at = bisect_left(curve.steps, finding.step)
    if finding.kind == "spike":
        return at
    best = min(curve.values[:at])
    return next(row for row in range(at, -1, -1) if curve.values[row] < best + DEFAULT_RULES.divergence_margin)


def _stands_out(curve: Curve, spike: Spike) -> bool:
    """Whether a spike is more than a hard batch."""
    rows = len(curve.between(spike.step, spike.healed_step or math.inf))
    least, sigmas = (BRIEF_RISE, BRIEF_NOISE) if rows <= BRIEF_ROWS + 1 else (SPIKE_RISE, SPIKE_NOISE)
    return spike.rise >= max(least, sigmas * noise_sd(curve.before(spike.step, SETTLED_ROWS)))


def _measured(curve: Curve, index: int) -> Spike:
    noise = noise_sd(curve.values[max(0, index - SETTLED_ROWS) : index])
    healed_by = max(HEALED, noise)
    before = statistics.median(curve.values[max(0, index - 64) : max(1, index - 1)])
    # The gradient norm may have jumped first, and the monitor calls both one spike.
    soon = enumerate(curve.values[index : index + DEFAULT_RULES.spike_quiet_steps], start=index)
    index = next((at for at, value in soon if value > before + max(SPIKE_RISE, SPIKE_NOISE * noise)), index)
    # The level of five rows: single ones wander.
    levels = ((at, statistics.median(curve.values[at : at + 5])) for at in range(index + 1, len(curve) - 4))
    healed = next((at for at, level in levels if level <= before + healed_by), None)
    return _spike(curve, index, healed, before)


def _spike(curve: Curve, index: int, healed: int | None, before: float) -> Spike:
    values = curve.values[index:healed]
    peak = max(values)
    return Spike(
        step=curve.steps[index],
        before=before,
        peak=peak,
        peak_step=curve.steps[index + values.index(peak)],
        healed_step=None if healed is None else curve.steps[healed],
        last_step=curve.steps[-1],
    )


def _sparse_spikes(run: RunView) -> list[Spike]:
    """Return the jumps in a record too thin for the monitor: a row well above the level of the three before it."""
    curve = run.train if len(run.train) >= len(run.val) else run.val
    values = curve.values
    # Of the whole record: the few rows before a jump may have been alike by chance.
    least = max(SPIKE_RISE, SPARSE_NOISE * noise_sd(values) if len(values) >= NOISE_ROWS else 0.0)
    found: list[Spike] = []
    index = 2
    while index < len(values):
        before = statistics.median(values[max(1, index - 3) : index])
        rise = values[index] - before
        if rise > least and rise > _margin(values, index, before) and _val_agrees(run, curve, index, before):
            healed = next((i for i in range(index + 1, len(values)) if values[i] <= before + HEALED), None)
            found.append(_spike(curve, index, healed, before))
            index = len(values) if healed is None else healed
        index += 1
    return found


def _margin(values: Sequence[float], index: int, before: float) -> float:
    settled = [value for value in values[max(1, index - SETTLED_ROWS) : index] if value < before + 0.5]
    return SPIKE_NOISE * noise_sd(settled) if len(settled) >= 5 else 0.5


def _val_agrees(run: RunView, curve: Curve, index: int, before: float) -> bool:
    """Where both losses were measured at the step, both must rise: one alone is a hard batch or overfitting."""
    step = curve.steps[index]
    here, earlier = run.val.between(step, step), run.val.before(step, 1)
    return not here or (bool(earlier) and here[0] - earlier[0] > 0.5 * (curve.values[index] - before))


def spike_finding(run: RunView, spikes: Sequence[Spike]) -> Diagnosis | None:
    if not spikes:
        return None
    worst = max(spikes, key=lambda spike: (spike.healed_step is None, spike.rise))
    many = len(spikes) >= 3
    count = f"{len(spikes)} spikes, the worst" if len(spikes) > 1 else "the loss jumps"
    after = _aftermath(run, worst)
    like_start = _looks_set_back(run, worst)
    rate = _rate_at(run, worst.step) if _rate_is_high(run, worst) else None
    said = [
        f"{worst.before:.4f} before {run.unit} {worst.step}, {worst.peak:.4f} at {run.unit} {worst.peak_step}, its peak"
    ]
    if worst.peak_step in run.val.steps and worst.peak_step in run.train.steps and not run.is_dense:
        said.append(f"validation {run.val.near(worst.peak_step):.4f} there: the weights changed, not the batch")
    if like_start:
        said.append(f"that is the loss the run started with ({run.start_loss:.2f}): as if the weights had been reset")
    if any(abs(step - worst.step) <= max(1, 0.01 * run.last_step) for step in run.trace.restarts):
        said.append("the log was restarted there: optimizer state or weights may not have been restored")
    said.append(rate_text(run, worst.step))
    return Diagnosis(
        kind="spike",
        confidence=0.95 if worst.healed_step is None or like_start else 0.85 if worst.rise > 1 or many else 0.7,
        summary=f"{count} by {worst.rise:.2f} nats/token at {run.unit} {worst.step} and {after}"
        + (f": the learning rate of {rate:.1e} there is high" if rate and not like_start else "")
        + (": back at the loss of the untrained start" if like_start else ""),
        evidence="; ".join(said),
        next_step=_spike_advice(run, worst, like_start=like_start, many=many),
        steps=(worst.step, worst.healed_step or worst.last_step),
    )


def _looks_set_back(run: RunView, spike: Spike) -> bool:
    """Whether the loss was that of the run's start, and took as long to come down again."""
    start = run.start_loss
    if start is None or not run.starts_at_start or abs(spike.peak - start) > 0.5 or start - spike.before < 1:
        return False
    first_fall = run.coarse.first_below(spike.before + HEALED, otherwise=run.last_step)
    healing = (spike.healed_step or run.last_step) - spike.step
    return not run.is_dense or healing >= 0.5 * (first_fall - run.start_step)


def _aftermath(run: RunView, spike: Spike) -> str:
    if spike.healed_step is not None:
        return f"is back at its level by {run.unit} {spike.healed_step}"
    if spike.last_step <= spike.step:
        return "the record ends there"
    return f"has not come back by {run.unit} {spike.last_step}"


def _rate_at(run: RunView, step: int) -> float | None:
    return run.learning_rate.near(step) if run.learning_rate.steps else run.peak_lr


def _rate_is_high(run: RunView, spike: Spike) -> bool:
    """Whether the rate at the spike is high for such a run, or the spike comes as the rate gets to its peak."""
    there, hot = _rate_at(run, spike.step), HOT_SCRATCH_LR if run.from_scratch else HOT_FINE_LR
    before = run.learning_rate.before(spike.step, 5)
    warms_up = len(before) >= 2 and before[-1] > 1.02 * before[0]
    return there is not None and (there >= hot or (warms_up and there >= 0.5 * max(run.learning_rate.values)))


def _spike_advice(run: RunView, spike: Spike, *, like_start: bool, many: bool) -> str:
    if like_start:
        advice = (
            f"check what the script does at {run.unit} {spike.step}: a reload, a checkpoint written and read back, a "
            "model built again; then the text"
        )
    elif _rate_is_high(run, spike) or many:
        # A text that would do this at a moderate rate hardly exists; a rate that does it needs no text.
        return f"the learning rate comes first: {calmer(run)}; log the gradient norm at every step"
    else:
        advice = "check the text that was read there"
    batch, block = (run.trace.announced.get(name, "") for name in ("batch_size", "block_size"))
    where = ""
    # Our own trials draw their windows at random: a step has no place in the text.
    if batch.isdigit() and block.isdigit() and run.trace.origin == "log":
        tokens = spike.step * int(batch) * int(block)
        where = f", which is token {tokens:,} of training if it is read in order"
    return f"{advice}{where} (make audit RANGE=...); log the gradient norm at every step around it"


def poisoned(run: RunView, spikes: Sequence[Spike]) -> Diagnosis | None:
    finding = run.finding("poisoned_optimizer")
    # The monitor watches 100 steps; the record may show that the spike healed later.
    if finding is None or any(one.healed_step and one.step <= finding.step <= one.healed_step for one in spikes):
        return None
    return Diagnosis(
        kind="poisoned_optimizer",
        confidence=0.75,
        summary=f"the run does not recover from a spike: by {run.unit} {finding.step} Adam's second moment looks "
        "corrupted",
        evidence=finding.evidence,
        next_step="go back to a checkpoint before the spike; skip the step whose gradient norm is far above its mean",
        steps=(finding.step, run.last_step),
    )


def calmer(run: RunView) -> str:
    rate = run.peak_lr
    lower = f"a third of {rate:.1e} or less" if rate else "a third of the learning rate"
    lower = f"{lower_rate(run, 3):.0e} or less in place of {rate:.1e}" if rate and is_ruinous(run) else lower
    lower = after_hard_settings(run.trace.announced, lower)
    return (
        f"go back to the last checkpoint before; try {lower}, a warm-up of a few per cent of the steps, a clip "
        "at norm 1.0"
    )


def rate_text(run: RunView, step: int) -> str:
    said = [f"learning rate there {run.learning_rate.near(step):.2e}"] if run.learning_rate.steps else []
    if len(run.grad_norm) > 10:
        typical = statistics.median(run.grad_norm.values[: len(run.grad_norm) // 4])
        highest = max(run.grad_norm.between(step - 0.05 * run.last_step, math.inf), default=typical)
        said.append(f"gradient norm up to {highest:.3g}, {typical:.3g} in the first quarter")
    return "; ".join(said) or "learning rate not recorded"
