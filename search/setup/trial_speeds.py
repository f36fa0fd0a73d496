"""The speed of a study's shapes on its slots, from which BUDGET_TIME makes steps. Measured once a study."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from results.words import count_words
from search.setup.inputs import Loaded
from search.terminal.console import Preparing
from search.tune.resources import Slots
from spaces.budget import Speeds
from trainable.config import TrialConfig
from trainable.errors import UserError

ROUNDS = 3
"""All shapes in turn, so many times: a machine's speed drifts within seconds."""
SHAPE_S = (3.0, 10.0)
"""The least and the most that a shape is measured, in all rounds. Four shapes on two cores of an AMD EPYC: 3 s leave
4 % between the shapes' errors, 10 s leave 2 %."""
SHAPE_SHARE = 1 / 20
"""Of a trial's time, between these two."""


def measured_speeds(
    loaded: Loaded,
    slots: Slots,
    shapes: Sequence[TrialConfig],
    *,
    known: Speeds | None,
    device_s: float,
    progress: Preparing,
) -> Speeds:
    """Return the speeds of all shapes: the known ones, and the rest measured with all slots busy.

    device_s: a trial's, which decides whether its layers are compiled. Raises UserError if no shape trains.
    """
    from trainable.device.speed_probe import probes

    step_s = {} if known is None else dict(known.step_s)
    # Small ones first: when a large one runs out of memory, the others are known.
    left = sorted((shape for shape in dict.fromkeys(shapes) if shape not in step_s), key=lambda s: s.tokens_per_step)
    count = slots.count_on_device
    what = f"BUDGET_TIME: measuring the speed of {count_words(len(left), 'shape')}, {count} at a time"
    if left:
        progress(what, 0.0)
    in_turn, found, evaluations_s = left * ROUNDS, defaultdict[TrialConfig, list[float]](list), list[float]()
    least_s, most_s = SHAPE_S
    seconds = min(max(least_s, SHAPE_SHARE * device_s), most_s) / ROUNDS
    measured = probes(loaded.spec, in_turn, count=count, threads=slots.threads, seconds=seconds, run_s=device_s)
    for number, (shape, probe) in enumerate(zip(in_turn, measured, strict=True), 1):
        if probe.step_s is not None and probe.evaluation_s is not None:
            found[shape].append(probe.step_s)
            evaluations_s.append(probe.evaluation_s)
        progress(what, number / len(in_turn))
    # The mean: the median of three leaves half as much again between the shapes' errors.
    step_s.update({shape: fmean(times_s) for shape, times_s in found.items()})
    if not step_s:
        raise UserError(
            "BUDGET_TIME: no shape of the space trains here, so no speed is known. make preflight says why."
        )
    # The minimum: the first evaluation of a process takes longer than all that follow.
    evaluation_s = min(evaluations_s) if known is None else known.evaluation_s
    return Speeds(step_s={**step_s, **_estimated(shapes, step_s)}, evaluation_s=evaluation_s)


def _estimated(shapes: Sequence[TrialConfig], step_s: Mapping[TrialConfig, float]) -> dict[TrialConfig, float]:
    """Return a step time for the shapes that failed: any will do, their trials run out of memory anyway."""
    largest = max(step_s, key=lambda shape: shape.tokens_per_step)
    a_token_s = step_s[largest] / largest.tokens_per_step
    return {shape: a_token_s * shape.tokens_per_step for shape in shapes if shape not in step_s}
