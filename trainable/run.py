"""RunSpec: what all trials of a study share, and how a run begins from it. A worker needs nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trainable.checkpoint.checkpoint import Checkpoint, load_merged, load_weights, restore
from trainable.config import TrialConfig, variable_of
from trainable.data.tokens import Corpus, check_corpus
from trainable.device.compiling import CompileMode, compile_where_repaid
from trainable.device.device import allow_tf32
from trainable.device.device_memory import release_memory
from trainable.device.own_process import in_own_process
from trainable.errors import UserError
from trainable.evaluation import EvalProtocol, evaluate_start
from trainable.model.fingerprint import check_weights
from trainable.model.lora import AdapterBase, add_adapters, base_fingerprint
from trainable.model.model_names import PRESETS
from trainable.model.models import check_model, load_model
from trainable.model.modes import checkpoint_layers
from trainable.rows import Start
from trainable.stability import make_rules
from trainable.state import TrainState, new_state


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The fixed part of a run: the same for every trial of a study."""

    model_name: str
    corpus: Corpus
    protocol: EvalProtocol
    device: str
    unigram_entropy: float
    """Of the training tokens, nats/token."""
    init_from: Path | None = None
    """A checkpoint whose weights every run starts from; adapters among them are merged."""
    weight_sums: Mapping[str, str] = field(default_factory=dict)
    """What fingerprint.weight_sums() found before the first run; every run's weights must be of the same files."""
    stability: Mapping[str, Any] = field(default_factory=dict)
    """Overrides for trainable.stability.StabilityRules."""
    compile_mode: CompileMode = "auto"
    gradient_checkpointing: bool = False
    """Whether a layer's activations are computed a second time in the backward pass: less memory, the same losses."""

    start: Start | None = None
    """What runs start from, where it was evaluated; of random weights those of `start_seed`."""
    start_seed: int = 0

    def known_start(self, config: TrialConfig) -> Start | None:
        """Return what a run of the configuration starts from, None where nobody evaluated it.

        Adapters begin as no change at all: only random weights differ between configurations.
        """
        return None if self.from_scratch and config.seed != self.start_seed else self.start

    @property
    def from_scratch(self) -> bool:
        """Whether runs start from random weights."""
        return self.model_name in PRESETS and self.init_from is None


def start_run(spec: RunSpec, config: TrialConfig) -> TrainState:
    """Return a run at step 0 on the spec's device.

    Raises UserError when model, checkpoint, corpus and configuration do not fit each other.
    """
    return _state(spec, config, None)


def with_start(spec: RunSpec, config: TrialConfig) -> RunSpec:
    """Return the spec with what runs start from evaluated; random weights are those of config's seed."""
    (start,) = in_own_process(spec.device, _starts, spec, config)
    return replace(spec, start=start, start_seed=config.seed)


def _starts(spec: RunSpec, config: TrialConfig) -> Iterator[Start]:
    state = start_run(replace(spec, compile_mode="off"), replace(config, use_lora=False))
    start, device = evaluate_start(state.model, spec.corpus, spec.protocol), state.device
    del state
    release_memory(device)  # which the trials' own processes need
    yield start


def resume_run(spec: RunSpec, config: TrialConfig, checkpoint: Checkpoint, *, may_be_over: bool = False) -> TrainState:
    """Return a run that goes on where `checkpoint` left off.

    Ours continues exactly (optimizer, random numbers, data position); from another script's file the weights and the
    step count are taken, and the optimizer starts from zero. may_be_over: the last evaluation alone may be missing.
    """
    step = checkpoint.step_to_continue_from
    if config.training_steps <= step and not may_be_over:
        raise UserError(
            f"CHECKPOINT_PATH={checkpoint.path} is at step {step} and TRAINING_STEPS="
            f"{config.training_steps} is no further. Set RESUME_STEPS to the steps to add."
        )
    state = _state(spec, config, checkpoint)
    if checkpoint.ours is None:
        state.optimizer_steps = step
    else:
        restore(state, checkpoint)
    return state


def load_run_model(
    spec: RunSpec, config: TrialConfig, checkpoint: Checkpoint | None, *, model: PreTrainedModel | None = None
) -> tuple[PreTrainedModel, AdapterBase | None]:
    """Return the model that a run of `config` trains, on the CPU, and what its adapters are of, if it has any.

    checkpoint: where the run goes on from. model: the spec's, where it was loaded already; it becomes the run's.
    Raises UserError when model, checkpoint and configuration do not fit, and InputChangedError when the files are not
    those that the spec was made with.
    """
    check_weights(spec.model_name, spec.init_from, spec.weight_sums)
    if model is None:
        model = load_model(spec.model_name, dropout=config.dropout, seed=config.seed)
    if spec.gradient_checkpointing:
        checkpoint_layers(model)
    # Below the adapters of a checkpoint are init_from's weights only where they were made on such.
    if spec.init_from is not None and (checkpoint is None or (checkpoint.base and checkpoint.base.init_from)):
        load_merged(model, spec.init_from, model_name=spec.model_name)
    # Once more: they may have been replaced while they were read. Where nothing was, this reads no file.
    check_weights(spec.model_name, spec.init_from, spec.weight_sums)
    if checkpoint is not None:
        _check_same_weights(config, checkpoint)
        # Adapters are made with what is the run's own to change, their dropout.
        load_weights(model, replace(checkpoint, config=config), model_name=spec.model_name)
        if checkpoint.base is not None:
            return model, checkpoint.base
    if not config.use_lora:
        return model, None
    # A checkpoint that is not ours holds the weights that the adapters are then put on.
    below = checkpoint.path if checkpoint is not None else spec.init_from
    init_from = str(below) if below else None
    base = AdapterBase(model_name=spec.model_name, init_from=init_from, fingerprint=base_fingerprint(model))
    add_adapters(model, config)
    return model, base


def _check_same_weights(config: TrialConfig, checkpoint: Checkpoint) -> None:
    """Raise UserError when `config` trains other weights than those that our checkpoint's optimizer knows."""
    if checkpoint.config is None:
        return
    for name in ("use_lora", *(("lora_rank", "lora_alpha", "lora_targets") if config.use_lora else ())):
        then, now, variable = getattr(checkpoint.config, name), getattr(config, name), variable_of(name)
        if then != now:
            raise UserError(
                f"CHECKPOINT_PATH={checkpoint.path} was trained with {variable}={then}, and {variable} is {now}. Set "
                f"{variable}={then} to go on with it, or WEIGHTS_ONLY=True to start at step 0 from its weights."
            )


def _state(spec: RunSpec, config: TrialConfig, checkpoint: Checkpoint | None) -> TrainState:
    check_corpus(spec.corpus, block_size=config.block_size, eval_block_size=spec.protocol.block_size)
    model, adapter_base = load_run_model(spec, config, checkpoint)
    blocks = {"block_size": config.block_size, "eval_block_size": spec.protocol.block_size}
    check_model(model, spec.model_name, **blocks, vocab_size=spec.corpus.vocab_size)
    device = torch.device(spec.device)
    allow_tf32(device)
    state = new_state(
        config,
        model,
        device=device,
        unigram_entropy=spec.unigram_entropy,
        # A resumed run is judged as it was before it was cut; another script's weights are of unknown origin.
        from_scratch=spec.from_scratch and (checkpoint is None or checkpoint.ours is not None),
        rules=make_rules(spec.stability),
    )
    state.adapter_base = adapter_base
    state.compile_note = compile_where_repaid(spec.compile_mode, model, config)
    return state
