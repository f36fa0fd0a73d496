"""How fast the shapes of a study train on its slots: what a budget of time is made of, measured once a study."""

from collections.abc import Mapping, Sequence

from results.words import count_words
from search.setup.inputs import Loaded
from search.terminal.console import Preparing
from search.tune.resources import Slots
from spaces.budget import Speeds
from trainable.config import TrialConfig
from trainable.errors import UserError

PROBE_S = 1.0


def measured_speeds(
    loaded: Loaded,
    slots: Slots,
    shapes: Sequence[TrialConfig],
    *,
    known: Speeds | None,
    device_s: float,
    progress: Preparing,
) -> Speeds:
    """Return the speeds of all the shapes: as known, else measured with as many beside as the study runs.

    device_s: of a trial, by which it is decided whether its layers are compiled. Raises UserError where none can train.
    """
    from trainable.device.speed_probe import probes

    step_s = {} if known is None else dict(known.step_s)
    evaluations_s = [] if known is None else [known.evaluation_s]
    # The small ones first: where a large one takes all memory, the others are known.
    left = sorted((shape for shape in dict.fromkeys(shapes) if shape not in step_s), key=lambda s: s.tokens_per_step)
    count = slots.count_on_device
    what = f"BUDGET_TIME: measuring the speed of {count_words(len(left), 'shape')}, {count} at a time"
    if left:
        progress(what, 0.0)
    measured = probes(loaded.spec, left, count=count, threads=slots.threads, seconds=PROBE_S, run_s=device_s)
    for number, (shape, probe) in enumerate(zip(left, measured, strict=True), 1):
        if probe.step_s is not None and probe.evaluation_s is not None:
            step_s[shape] = probe.step_s
            evaluations_s.append(probe.evaluation_s)
        progress(what, number / len(left))
    if not step_s:
        raise UserError(
            "BUDGET_TIME: no shape of the space trains here, so no speed is known. make preflight says why."
        )
    # The first in a process takes longer than all that follow.
    evaluation_s = min(evaluations_s) if known is None else known.evaluation_s
    return Speeds(step_s={**step_s, **_estimated(shapes, step_s)}, evaluation_s=evaluation_s)


def _estimated(shapes: Sequence[TrialConfig], step_s: Mapping[TrialConfig, float]) -> dict[TrialConfig, float]:
    """Return a time for those that did not get through: their trials run out of memory, whatever they are given."""
    largest = max(step_s, key=lambda shape: shape.tokens_per_step)
    a_token_s = step_s[largest] / largest.tokens_per_step
    return {shape: a_token_s * shape.tokens_per_step for shape in shapes if shape not in step_s}
