"""TrainState: everything that changes while a model trains, in one place, and how it begins."""

from dataclasses import dataclass, field
from functools import cache

import torch
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.model.lora import AdapterBase
from trainable.stability import DEFAULT_RULES, StabilityMonitor, StabilityRules


@dataclass(kw_only=True)
class SinceEvaluation:
    """What the steps since the last evaluation add up to; saved too, so that the next one says what it would have."""

    val_loss: float | None = None
    """That evaluation's, nats/token."""
    tokens_at_start: int = 0
    losses: list[float] = field(default_factory=list)
    """Of each step, nats/token."""
    seconds: float = 0.0
    grad_norm: float | None = None
    """The last step's, before the clip."""


@dataclass(kw_only=True)
class TrainState:
    """A training run between two steps."""

    config: TrialConfig
    model: PreTrainedModel
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    batches: torch.Generator
    """Draws the training windows and nothing else."""
    monitor: StabilityMonitor
    optimizer_steps: int = 0
    tokens_seen: int = 0
    active_s: float = 0.0
    """Seconds of training and evaluation, over all restarts."""
    since_evaluation: SinceEvaluation = field(default_factory=SinceEvaluation)
    adapter_base: AdapterBase | None = None
    """What the adapters are of, where the model has any: a checkpoint then holds nothing else of the model."""
    compile_note: str = ""
    """What was decided about compiling and why, for people; empty where nothing was to decide."""
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device


@cache
def leaves_out_steps(device_type: str) -> bool:
    """Return whether the device's fused AdamW leaves a step out where a loss scaler found gradients that overflowed.

    MPS's kernel, in the versions read, steps all the same, and one step on inf ends the run.
    """
    weight = torch.nn.Parameter(torch.ones(1, device=device_type))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=0.5, fused=True)
    optimizer.found_inf = torch.ones((), device=device_type)  # type: ignore[attr-defined]
    optimizer.step()
    return weight.item() == 1.0


def new_state(
    config: TrialConfig,
    model: PreTrainedModel,
    *,
    device: torch.device,
    unigram_entropy: float,
    from_scratch: bool,
    rules: StabilityRules = DEFAULT_RULES,
) -> TrainState:
    """Return the state of a run at step 0 with `model` moved to `device`."""
    model.to(device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=config.precision != "fp16" or leaves_out_steps(device.type),
    )
    monitor = StabilityMonitor(
        budget_steps=config.training_steps,
        unigram_entropy=unigram_entropy,
        from_scratch=from_scratch,
        rules=rules,
    )
    return TrainState(
        config=config,
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        batches=torch.Generator().manual_seed(config.seed),
        monitor=monitor,
    )
