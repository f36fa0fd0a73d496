"""The training loop: a generator over steps. It prints nothing, calls nobody back and knows no Ray."""

import math
import time
from collections.abc import Container, Iterator
from typing import TypeAlias

import torch

from trainable.data.tokens import Corpus, sample_batch
from trainable.device.device import autocast, begin_read, to_device
from trainable.evaluation import EvalProtocol, eval_windows, evaluate_start, part_losses, window_losses
from trainable.loss import next_token_loss
from trainable.rows import MetricsRow, Start, StepRow, Verdict
from trainable.schedule import learning_rate_at
from trainable.stability import STOP_KINDS, Finding
from trainable.state import SinceEvaluation, TrainState

WORSE_THAN_UNIFORM_NATS = 1.0
"""A model so far above ln V at an evaluation has diverged: random weights start within 0.1 of it. One that starts above
ln V, as on text unlike its own, has diverged where it is so far above its own start."""

TrainRow: TypeAlias = StepRow | Finding | MetricsRow | Verdict
"""What train() yields; a Finding never ends anything."""


def train(
    state: TrainState,
    corpus: Corpus,
    protocol: EvalProtocol,
    *,
    eval_steps: Container[int],
    stop_on: Container[str] = STOP_KINDS,
    evaluate_first: bool = True,
    start: Start | None = None,
) -> Iterator[TrainRow]:
    """Train `state` in place to its config's last step, yielding a row per step, per flag and per evaluation.

    Evaluates where it begins, after every step in `eval_steps`, and after the last. Without evaluate_first a run that
    was cut between two evaluations goes on as if it had not been. A `start` that is known of these very weights is not
    evaluated once more. When the stability monitor says stop, for one of the reasons in `stop_on`, the Verdict is the
    last row. Between any two rows the state is whole and can be saved.
    """
    val_windows = eval_windows(corpus.val, protocol)
    if evaluate_first:
        state.since_evaluation = SinceEvaluation(tokens_at_start=state.tokens_seen)
        started = time.perf_counter()
        known = start if start is not None and state.optimizer_steps == 0 else None
        first = known or evaluate_start(state.model, corpus, protocol)
        state.active_s += 0.0 if known else time.perf_counter() - started
        # Whatever it shows is not the training's doing; weights that are no numbers end the run at its first step.
        yield _noted(state, val_loss=first.val_loss, train_loss=first.train_loss)
    while state.optimizer_steps < state.config.training_steps:
        row, skipped = _step(state, corpus)
        since = state.since_evaluation
        since.losses.append(row.train_loss)
        since.seconds += row.step_time_s
        since.grad_norm = row.grad_norm
        findings = state.monitor.update(
            step=row.optimizer_steps,
            loss=row.train_loss,
            grad_norm=row.grad_norm,
            step_time_s=row.step_time_s,
            skipped=skipped,
        )
        yield row
        for finding in findings:
            if finding.severity == "stop" and finding.kind in stop_on:
                yield Verdict(reason=finding.kind, step=finding.step, evidence=finding.evidence)
                return
            yield finding
        if state.optimizer_steps in eval_steps or state.optimizer_steps == state.config.training_steps:
            metrics = _evaluated(state, val_windows, train_loss=math.fsum(since.losses) / len(since.losses))
            vocab_size = len(state.model.get_input_embeddings().weight)
            verdict = _judge(metrics, vocab_size=vocab_size, first_loss=state.monitor.first_loss)
            if verdict is not None and verdict.reason in stop_on:
                yield verdict
                return
            yield metrics


def _judge(metrics: MetricsRow, *, vocab_size: int, first_loss: float) -> Verdict | None:
    """Return the verdict on an evaluation: a few large steps can wreck a model before the steps' own rules have seen
    enough of them.

    first_loss: the first step's, nats/token.
    """
    step, loss, uniform = metrics.optimizer_steps, metrics.val_loss, math.log(vocab_size)
    if not math.isfinite(loss):
        return Verdict(reason="nonfinite", step=step, evidence=f"validation loss {loss}")
    if loss > max(uniform, first_loss) + WORSE_THAN_UNIFORM_NATS:
        evidence = (
            f"validation loss {loss:.2f} nats/token, where guessing uniformly costs ln {vocab_size} = {uniform:.2f} "
            f"and the first step's loss was {first_loss:.2f}"
        )
        return Verdict(reason="divergence", step=step, evidence=evidence)
    return None


def _step(state: TrainState, corpus: Corpus) -> tuple[StepRow, bool]:
    """Do one optimizer step; return its row and whether the loss scaler skipped the update."""
    config = state.config
    started = time.perf_counter()
    learning_rate = learning_rate_at(state.optimizer_steps, config)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    loss = _accumulate_gradients(state, corpus)
    state.scaler.unscale_(state.optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(
        state.model.parameters(), config.grad_clip_norm if config.grad_clip_norm > 0 else math.inf
    )
    read = begin_read(loss, grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer_steps += 1
    state.tokens_seen += config.tokens_per_step
    loss_nats, grad_norm_l2 = read()
    # What the scaler itself goes by; its own answer would have to be waited for.
    skipped = state.scaler.is_enabled() and not math.isfinite(grad_norm_l2)
    step_time_s = time.perf_counter() - started
    state.active_s += step_time_s
    row = StepRow(
        optimizer_steps=state.optimizer_steps,
        tokens_seen=state.tokens_seen,
        train_loss=loss_nats,
        grad_norm=grad_norm_l2,
        learning_rate=learning_rate,
        step_time_s=step_time_s,
    )
    return row, skipped


def _accumulate_gradients(state: TrainState, corpus: Corpus) -> torch.Tensor:
    config = state.config
    total = torch.zeros((), device=state.device)
    for _ in range(config.grad_accum_steps):
        tokens = to_device(state.device, sample_batch(corpus.train, config, state.batches))  # (B, T + 1)
        with autocast(state.device, config.precision):
            loss = next_token_loss(state.model, tokens)
        state.scaler.scale(loss / config.grad_accum_steps).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / config.grad_accum_steps
    return total


def _evaluated(state: TrainState, val_windows: torch.Tensor, *, train_loss: float) -> MetricsRow:
    started = time.perf_counter()
    losses = window_losses(state.model, val_windows)
    state.active_s += time.perf_counter() - started
    parts = part_losses(losses) if state.optimizer_steps == state.config.training_steps else ()
    return _noted(state, val_loss=float(losses.mean()), train_loss=train_loss, parts=parts)


def _noted(state: TrainState, *, val_loss: float, train_loss: float, parts: tuple[float, ...] = ()) -> MetricsRow:
    since = state.since_evaluation
    # Before the row is handed out: whoever gets it may save the state.
    state.since_evaluation = SinceEvaluation(val_loss=val_loss, tokens_at_start=state.tokens_seen)
    return MetricsRow(
        tokens_seen=state.tokens_seen,
        optimizer_steps=state.optimizer_steps,
        val_loss=val_loss,
        train_loss=train_loss,
        grad_norm=math.nan if since.grad_norm is None else since.grad_norm,
        learning_rate=learning_rate_at(state.optimizer_steps, state.config),
        tokens_per_s=(state.tokens_seen - since.tokens_at_start) / since.seconds if since.seconds else math.nan,
        active_s=state.active_s,
        part_losses=parts,
    )
