"""Checks of a configuration against itself and against a model's limits: schedule, precision, block size."""

import timeit
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from trainable.checkpoint.exam.exam_weights import unmovable_frac
from trainable.config import TrialConfig
from trainable.device.device import AUTOCAST_DTYPES, autocast
from trainable.errors import first_of
from trainable.loss import next_token_loss
from trainable.model.modes import dropout_fields, in_mode
from trainable.preflight.check_result import Check, judged, skipped
from trainable.schedule import learning_rate_at

LONG_WARMUP_FRAC = 0.5
PRECISION = "precision"
# With each of these the shipped model, which starts at 4.48, is after 100 steps of 8 x 64 at the val loss that stands
# beside it; with a rate of 1e-3 and a dropout of 0.1 it is at 4.27.
RUINOUS_LR = 3e-2  # 6.3, as word frequencies alone; 1e-2, which diagnose blames where a run went wrong, is at 5.4
RUINOUS_LORA_LR = 0.2  # 6.8; the rate times alpha / rank
RUINOUS_DECAY_FRAC = 1e-2  # 5.5; the rate times the weight decay
RUINOUS_DROPOUT = 0.5  # 4.7
STALLED_WARN_FRAC = 0.5
AUTOCAST_MARGIN = 0.1
"""nats/token; bf16 is 1e-3 off for GPT-2."""
AUTOCAST_TOKENS = 16
"""Of each of two windows: a CPU without bf16 takes 0.2 s a token for 135M weights."""
SLOW_PRODUCTS_WARN = 2.0
"""Times as long as in fp32."""


def check_schedule(config: TrialConfig) -> Check:
    """Return whether the learning rate reaches its peak and ruins no weights."""
    first, last = learning_rate_at(0, config), learning_rate_at(config.training_steps - 1, config)
    # Shares, for under a budget of time the steps are not known yet.
    measured = f"{config.lr_schedule} from {first:.2e} to {last:.2e}"
    advice = ""
    if config.has_warmup and config.warmup_steps:
        measured += f", warm-up {config.warmup_steps / config.training_steps:.0%} of the run"
        if config.warmup_steps > LONG_WARMUP_FRAC * config.training_steps:
            advice = "Most of the run is warm-up. Shorten WARMUP_STEPS or lengthen TRAINING_STEPS."
    ruinous, decay_frac = RUINOUS_LR, config.learning_rate * config.weight_decay
    if config.use_lora:
        ruinous = RUINOUS_LORA_LR * config.lora_rank / config.lora_alpha
    if config.learning_rate >= ruinous:
        advice = "Each step moves every weight by about its own size. Lower LEARNING_RATE"
        advice += " or LORA_ALPHA." if config.use_lora else "."
    elif decay_frac >= RUINOUS_DECAY_FRAC:
        measured += f", weight decay {config.weight_decay:g}"
        advice = f"Each step takes {decay_frac:.0%} of every weight away. Lower WEIGHT_DECAY or LEARNING_RATE."
    return judged(
        "learning-rate schedule",
        warned=bool(advice),
        measured=measured,
        expected=f"a peak below {ruinous:.0e}, a decay below {RUINOUS_DECAY_FRAC:.0%} of the weights a step, "
        "a warm-up of at most half the run",
        advice=advice,
    )


def check_precision(config: TrialConfig, model: PreTrainedModel, windows: torch.Tensor) -> Check:
    """Return whether the weights can take steps of this learning rate, and autocast gives the loss that fp32 gives.

    windows: (N, T + 1), of which two are used.
    """
    device = next(model.parameters()).device
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in trained})
    measured = f"weights {', '.join(dtypes)}; PRECISION={config.precision} on {device.type}"
    if config.precision == "bf16" and device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        return judged(
            PRECISION,
            failed=True,
            measured=measured,
            expected="macOS 14 or newer, for MPS to compute bf16",
            advice="Update macOS, or set PRECISION=fp16 or fp32.",
        )
    stalled = unmovable_frac(trained, config.learning_rate)
    few = windows[:2, : AUTOCAST_TOKENS + 1].to(device)
    difference = 0.0 if config.precision == "fp32" else _autocast_difference(config, model, few)
    failed, advice = not difference <= AUTOCAST_MARGIN, ""
    if config.precision != "fp32":
        measured += f", whose loss is {difference:.1e} from fp32's"
    if failed:
        advice = "This model's loss changes too much at this precision. Set PRECISION=fp32, or bf16 instead of fp16."
    elif stalled > STALLED_WARN_FRAC:
        measured += f"; an Adam step of {config.learning_rate:.0e} is rounded away in {stalled:.0%} of the weights"
        advice = "Training would stall. Raise LEARNING_RATE, or keep the weights in fp32 (autocast does)."
    elif config.precision == "fp16" and device.type == "cpu":
        advice = "fp16 is slow on a CPU and overflows early. Set PRECISION=fp32."
    elif device.type == "cpu" and (times := times_as_slow(config.precision)) > SLOW_PRODUCTS_WARN:
        advice = f"Matrix products take {times:.0f} times as long in {config.precision} as in fp32 on this processor. "
        advice += "Set PRECISION=fp32."
    elif (config.precision, device.type) == ("bf16", "cuda") and not torch.cuda.is_bf16_supported(
        including_emulation=False
    ):
        advice = "This GPU computes bf16 in software. Set PRECISION=fp16 or fp32."
    return judged(
        PRECISION,
        failed=failed,
        warned=bool(advice),
        measured=measured,
        expected=f"fp32 weights, and a loss within {AUTOCAST_MARGIN} of fp32's",
        advice=advice,
    )


def times_as_slow(precision: str) -> float:
    """Return how many times as long as in fp32 this processor takes for a matrix product at a precision.

    One without bf16 instructions computes it 20 to 60 times as slowly, and torch does not say so.
    """
    if precision not in AUTOCAST_DTYPES:
        return 1.0
    threads, least_s = torch.get_num_threads(), {}
    # Where another process holds a core, products of two threads wait for each other, and the ratio says nothing.
    torch.set_num_threads(1)
    try:
        for dtype in (AUTOCAST_DTYPES[precision], torch.float32):
            square = torch.ones(128, 128, dtype=dtype)
            least_s[dtype] = min(timeit.repeat("square @ square", globals={"square": square}, number=1, repeat=5))
    finally:
        torch.set_num_threads(threads)
    return least_s[AUTOCAST_DTYPES[precision]] / least_s[torch.float32]


def _autocast_difference(config: TrialConfig, model: PreTrainedModel, windows: torch.Tensor) -> float:
    with in_mode(model, training=False), torch.no_grad():
        exact = next_token_loss(model, windows)
        with autocast(windows.device, config.precision):
            return abs(float(next_token_loss(model, windows)) - float(exact))


def check_dropout(config: TrialConfig, model: torch.nn.Module) -> Check:
    """Return whether DROPOUT is the probability of all dropout in the model; adapters have their own."""
    found = {
        f"{name}.{field}".removesuffix(".p"): float(getattr(module, field))
        for name, module in model.named_modules()
        if "lora_dropout" not in name
        for field in dropout_fields(module)
    }
    others = [name for name, p in found.items() if p != config.dropout]
    advice = ""
    if others:
        advice = "DROPOUT does not reach these layers: the model's configuration has no number for them."
    elif config.dropout and not found:
        advice = "DROPOUT changes nothing here: this model has no dropout. Leave it out of the search, or set it to 0."
    elif config.dropout >= RUINOUS_DROPOUT:
        advice = f"A model that loses {config.dropout:.0%} of its activations learns little. Lower DROPOUT."
    measured = f"{len(found)} places with dropout"
    return judged(
        "dropout",
        warned=bool(advice),
        measured=f"{measured}, {len(others)} not at {config.dropout:g}: {first_of(others)}" if others else measured,
        expected=f"DROPOUT={config.dropout:g} in all, and below {RUINOUS_DROPOUT:g}",
        advice=advice,
    )


def check_block_sizes(limit: int | None, blocks: Mapping[str, int]) -> Check:
    """Return whether every named block size is within the model's positions."""
    name = "block size"
    if limit is None:
        return skipped(name, "the model has no limit of positions")
    too_long = [f"{what}={block}" for what, block in blocks.items() if block > limit]
    return judged(
        name,
        failed=bool(too_long),
        measured=", ".join(f"{what}={block}" for what, block in blocks.items()) + f" at {limit} positions",
        expected=f"at most {limit} tokens",
        advice=f"Lower {' and '.join(too_long)} to {limit} or less, or use a model with more positions.",
    )


def check_finite_weights(model: torch.nn.Module) -> Check:
    """Return whether every weight is a finite number, naming the tensors that have others."""
    bad = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    return judged(
        "finite weights",
        failed=bool(bad),
        measured=f"NaN or inf in {first_of(bad)}" if bad else "all finite",
        expected="no NaN and no inf",
        advice="The weights were saved after the run had broken. Use an earlier checkpoint.",
    )
