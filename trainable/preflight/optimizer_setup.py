"""Is an optimizer set up to train its model: the tensors it holds, its settings, and the gradients that it finds?"""

from collections.abc import Iterator, Sequence

import torch

from trainable.model.models import has_lost_its_tie, numberless
from trainable.preflight.causality import causal_model
from trainable.preflight.configuration import listed
from trainable.preflight.optimizer_watch import OptimizerWatch, WatchedTensor

Finding = tuple[str, str]
"""What was measured, and what to do about it."""


def held_faults(watch: OptimizerWatch) -> Iterator[Finding]:
    """Yield what is wrong with the tensors that the optimizer holds."""
    holders = watch.holders()
    missing = [tensor for tensor in watch.tensors if id(tensor.parameter) not in holders]
    twice = [tensor for tensor in watch.tensors if len(holders.get(id(tensor.parameter), ())) > 1]
    if missing:
        advice = "Give the optimizer model.parameters(), after the last change of the model's tensors."
        yield words_of(missing, watch, "not in the optimizer"), advice
    if twice:
        yield words_of(twice, watch, "in the optimizer more than once"), "Keep each in one group."
    causal = causal_model(watch.model)
    if causal is not None and has_lost_its_tie(causal):
        advice = "Call model.tie_weights() before the optimizer is made: a saved model has one tensor for both again."
        yield "the head and the input embedding are two tensors, which the config ties", advice


def setting_faults(watch: OptimizerWatch, weight_decay: float | None) -> tuple[list[Finding], list[Finding]]:
    """Return what is wrong with the optimizer's settings, and what may be; weight_decay: AdamW's, if it is meant."""
    faults, doubts = dict[str, str](), dict[str, str]()
    for optimizer in watch.optimizers:
        for group in optimizer.param_groups:
            if group.get("maximize"):
                faults["maximize: the steps raise the loss"] = "Leave maximize out."
            if not isinstance(optimizer, torch.optim.Adam):
                continue
            first, second = (float(beta) for beta in group["betas"])
            # Kingma & Ba 2015, theorem 4.1.
            if first**2 >= second**0.5:
                faults[f"betas {first:g} and {second:g}: Adam needs beta1² < √beta2"] = "Look at their order."
            if group.get("weight_decay") and not group.get("decoupled_weight_decay", True):
                is_meant = weight_decay is None and not isinstance(optimizer, torch.optim.AdamW)
                (doubts if is_meant else faults)["weight decay is added to the gradient (L2)"] = (
                    "Use AdamW: Adam's second moment divides most of such a decay away."
                )
    return list(faults.items()), list(doubts.items())


def gradient_faults(watch: OptimizerWatch) -> Iterator[Finding]:
    """Yield which tensors had no gradient in any step, or the last step's in the next."""
    if len(watch.stepped) < len(watch.optimizers):
        advice = "Call it, or give the optimizer that the script steps; a loss scaler leaves out its first."
        yield f"optimizer.step() was not called in {watch.ends} steps", advice
        return
    holders = watch.holders()
    # Behind LoRA's B, which begins as 0, there is no gradient until B has moved.
    held = [one for one in watch.tensors if id(one.parameter) in holders]
    idle = [one for one in held if not one.has_gradient]
    if idle and (watch.moving_steps > 1 or idle == held):
        advice = "Look for detach(), no_grad, zero_grad() before the step, and a clip to 0."
        yield words_of(idle, watch, f"without gradient in {watch.steps} steps"), advice
    kept = [one for one in held if one.kept_gradient]
    if kept:
        words = words_of(kept, watch, "with the last step's gradient in this one's")
        yield words, "Call optimizer.zero_grad() once a step."


def frozen_doubts(watch: OptimizerWatch) -> Iterator[Finding]:
    """Yield the frozen tensors above a layer in which the same one is trained: lower layers alone are often frozen."""
    trained, frozen = set[str](), list[str]()
    for name, parameter in watch.model.named_parameters():
        kind = numberless(name)
        if parameter.requires_grad:
            trained.add(kind)
        elif kind in trained:
            frozen.append(name)
    if frozen:
        yield f"{len(frozen)} tensors frozen above trained ones: {listed(frozen)}", "Right only if it is meant so."


def words_of(tensors: Sequence[WatchedTensor], watch: OptimizerWatch, what: str) -> str:
    """Return how many of the watched tensors are so, and which."""
    names = [tensor.name for tensor in tensors]
    return f"{len(names)} of {len(watch.tensors)} trainable tensors {what}: {listed(names)}"
