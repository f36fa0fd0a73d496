"""What is wrong with checkpoints, from the facts measured on them. It reads no file and needs no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from results.diagnosis.diagnose import ranked
from results.diagnosis.findings import Diagnosis
from results.diagnosis.render import Report
from trainable.checkpoint.exam.exam_facts import CheckpointFacts, gain_words, learned_doubled_labels
from trainable.errors import first_of

WRONG_OFFSET_NATS = 0.15
"""Right models are better at the next token by 3.7 (pretrained) and more; doubled labels give -0.6 after 300 steps."""
COPIED_NATS = 1.0
UNLEARNED_NATS = 0.3
UNLEARNED_STEPS = 300
"""Earlier a model with random weights is on its way."""
SHOWN = 4


def report_of_checkpoints(
    target: str,
    facts: Sequence[CheckpointFacts],
    *,
    unread: Sequence[str] = (),
    unigram_entropy: float | None = None,
    text: str = "",
) -> Report:
    """Return the report of one checkpoint, or of several in the order of their steps, measured on that text.

    unread: why others could not be read.
    """
    last = facts[-1]
    losses = _by_offset(last.offset_losses)
    notes = [f"left out: {why}" for why in unread]
    if losses:
        at_step = f" at step {last.optimizer_steps}" if last.optimizer_steps else ""
        measured_on = f"{last.offset_tokens} held-out tokens{text and f' of {text}'}{at_step}"
        notes.append(f"loss by offset on {measured_on}: {losses}")
    if unigram_entropy is not None and last.offset_losses.get(1, 0.0) > unigram_entropy:
        # Of a model whose steps are not known no finding says it.
        notes.append(
            f"the next token is predicted worse than word frequencies alone do ({unigram_entropy:.2f}): is it the text "
            "and the tokenizer that it was trained with? TRAINING_DATA_SOURCE and GPT2_MODEL_NAME name them"
        )
    if last.base_gains and not any(gain.nats for gain in last.base_gains.values()):
        notes.append(f"its losses are those of {last.base_name}: it is that model, or nothing was trained")
    elif last.base_gains:
        notes.append(f"gain on its base {last.base_name} by offset: {gain_words(last.base_gains)}")
    notes += [f"not compared with the model it began as: {one.no_base}" for one in facts if one.no_base][:1]
    notes += [f"no offset profile of {one.name}: {one.no_profile}" for one in facts if one.no_profile][:1]
    types = ", ".join(f"{count:,} {name}" for name, count in last.dtypes.items())
    steps = ", ".join(str(one.optimizer_steps) for one in facts[-8:])
    what = "a checkpoint" if len(facts) == 1 else f"{len(facts)} checkpoints"
    whose = "of this project" if last.is_ours else "of another script"
    # A model folder's weights, ours too, and a bare state dict say no step.
    whence = f"{what} {whose}, step {steps}; " if any(one.optimizer_steps for one in facts) else ""
    about = f"{whence}weights: {types}"
    if last.hyperparameters:
        shown = ", ".join(f"{name} {value}" for name, value in list(last.hyperparameters.items())[:16])
        notes.append(f"recorded hyperparameters: {shown}")
    findings = diagnose_checkpoints(facts, unigram_entropy=unigram_entropy)
    return Report(target=target, about=about, findings=tuple(findings), notes=tuple(notes))


def diagnose_checkpoints(facts: Sequence[CheckpointFacts], *, unigram_entropy: float | None = None) -> list[Diagnosis]:
    """Return what is wrong with the checkpoints, the finding that explains most first; [] when nothing was found.

    A kind is reported once, of the latest checkpoint that shows it. unigram_entropy: of the text, nats/token.
    """
    by_kind: dict[str, list[tuple[CheckpointFacts, Diagnosis]]] = {}
    for one in facts:
        for finding in _findings(one, unigram_entropy):
            by_kind.setdefault(finding.kind, []).append((one, finding))
    found = []
    for cases in by_kind.values():
        one, finding = cases[-1]
        if len(facts) > 1:
            which = f"in {len(cases)} of {len(facts)} checkpoints, first at step {cases[0][0].optimizer_steps}"
            finding = replace(finding, evidence=f"in {one.name}: {finding.evidence}; {which}")
        found.append(finding)
    return ranked(found)


def _findings(facts: CheckpointFacts, unigram_entropy: float | None) -> Iterator[Diagnosis]:
    if facts.nonfinite_tensors:
        yield Diagnosis(
            kind="nonfinite_weights",
            confidence=1.0,
            summary="NaN or infinite weights: nothing can go on from this checkpoint",
            evidence=f"in {first_of(facts.nonfinite_tensors, SHOWN)}",
            next_step="go back to an earlier checkpoint; make diagnose TARGET=<its log> shows where it began",
        )
        return
    if facts.nonfinite_optimizer:
        yield Diagnosis(
            kind="nonfinite_weights",
            confidence=0.95,
            summary="the optimizer's state holds NaN or infinite values: the next step makes the weights non-finite",
            evidence="AdamW's second moment is not finite",
            next_step="resume with the weights alone and a new optimizer, or from an earlier checkpoint",
        )
    yield from _objective(facts, unigram_entropy)
    yield from _gradients(facts)
    yield from _precision(facts)


def _objective(facts: CheckpointFacts, unigram_entropy: float | None) -> Iterator[Diagnosis]:
    losses = {offset: loss for offset, loss in facts.offset_losses.items() if math.isfinite(loss)}
    if 1 not in losses or len(losses) < 2:
        return
    # Tied embeddings make random weights favour the token just read; only a model trained to copy is sure of it.
    others = [offset for offset in losses if offset != 1 and (offset != 0 or losses[0] < COPIED_NATS)]
    if not others:
        return
    best = min(others, key=lambda offset: losses[offset])
    margin = losses[best] - losses[1]
    measured = _by_offset(losses)
    evidence = (
        f"loss by offset on {facts.offset_tokens} tokens: {measured}; margin of the next token "
        f"{margin:+.2f} (pretrained GPT-2: +3.7)"
    )
    if margin < -WRONG_OFFSET_NATS:
        what = {
            0: "the token it just read: its labels were not shifted at all",
            2: "the token after the next: its labels were shifted twice, in the batch and again in the model",
        }.get(best, f"the token at offset {best:+d}: its labels were shifted wrongly")
        yield Diagnosis(
            kind="wrong_objective",
            confidence=0.97,
            summary=f"this checkpoint has learned to predict {what}",
            evidence=evidence,
            next_step="pass the batch's own ids as labels and let the model shift them, then train again from the "
            "pretrained weights: these are not worth continuing",
        )
    elif learned_doubled_labels(facts.base_gains):
        yield Diagnosis(
            kind="wrong_objective",
            confidence=0.95,
            summary="compared with its base this checkpoint is worse at the next token and better at the one after it: "
            "its labels were shifted twice, in the batch and again in the model",
            evidence=f"{evidence}; gain on {facts.base_name} by offset: {gain_words(facts.base_gains)}",
            next_step="pass the batch's own ids as labels and let the model shift them, then train again from the base",
        )
    elif (
        unigram_entropy is not None
        and losses[1] > unigram_entropy + UNLEARNED_NATS
        and facts.optimizer_steps >= UNLEARNED_STEPS
    ):
        is_random = facts.vocab_size is not None and abs(losses[1] - math.log(facts.vocab_size)) < UNLEARNED_NATS
        yield Diagnosis(
            kind="wrong_objective",
            confidence=0.8 if margin < 1 else 0.6,
            summary=f"after {facts.optimizer_steps} steps the checkpoint predicts the next token no better than "
            + ("random weights do" if is_random else "word frequencies do"),
            evidence=f"{evidence}; word frequencies alone give {unigram_entropy:.2f}",
            next_step="check whether this text and tokenizer are those it was trained with; then make preflight "
            "on the same set-up",
        )


def _gradients(facts: CheckpointFacts) -> Iterator[Diagnosis]:
    dead, of_all = facts.without_gradient, facts.optimizer_tensors
    if dead and facts.optimizer_steps > 1:
        yield Diagnosis(
            kind="detached_gradients",
            confidence=0.95,
            summary=f"{len(dead)} of the {of_all} tensors that the optimizer holds never had a gradient",
            evidence=f"their second moment is 0 after {facts.optimizer_steps} steps: {first_of(dead, SHOWN)}",
            next_step="look in these layers for no_grad(), detach() or an output that is not used; make "
            "preflight names where it is cut",
        )
    elif facts.zero_adapters and facts.optimizer_steps > 1:
        yield Diagnosis(
            kind="detached_gradients",
            confidence=0.9,
            summary=f"{len(facts.zero_adapters)} LoRA adapters are still 0: nothing was trained in them",
            evidence=f"after {facts.optimizer_steps} steps: {first_of(facts.zero_adapters, SHOWN)}",
            next_step="check whether the frozen layer runs under no_grad(), which cuts the gradient of every layer "
            "below, and whether the optimizer holds the adapters",
        )
    unchanged, compared = facts.unchanged_tensors, facts.compared_tensors
    if not compared or not unchanged:
        return
    since = f"between {facts.compared_with} and {facts.name}"
    if len(unchanged) == compared:
        yield Diagnosis(
            kind="precision_stall",
            confidence=0.95,
            summary=f"no weight changed {since}: the updates do not reach the weights",
            evidence=f"all {compared} tensors are equal",
            next_step="check the learning rate, requires_grad, whether the optimizer holds this model's "
            "parameters, and whether the weights are bf16",
        )
    elif not dead and not facts.zero_adapters:
        yield Diagnosis(
            kind="detached_gradients",
            confidence=0.6,
            summary=f"{len(unchanged)} of {compared} tensors did not change {since}: frozen, or without a gradient",
            evidence=f"in {first_of(unchanged, SHOWN)}",
            next_step="if they are not frozen on purpose, look there for no_grad(), detach() or requires_grad=False",
        )


def _precision(facts: CheckpointFacts) -> Iterator[Diagnosis]:
    low = [name for name in ("bfloat16", "float16") if facts.dtypes.get(name)]
    if low and facts.unmovable_frac is not None and facts.unmovable_frac > 0.5:
        yield Diagnosis(
            kind="precision_stall",
            confidence=0.9,
            summary=f"the weights are {low[0]}: at learning rate {facts.learning_rate:.1e} most of them cannot change",
            evidence=f"for {100 * facts.unmovable_frac:.0f} % of the weights an update is less than half the "
            f"distance to the next {low[0]} number, and is rounded away",
            next_step="keep the weights in fp32 and autocast the forward pass (PRECISION=bf16 does so)",
        )
    elif facts.bf16_valued_frac > 0.99 and facts.optimizer_steps > 0:
        yield Diagnosis(
            kind="precision_stall",
            confidence=0.7,
            summary="the weights are stored as fp32 but every one is a bf16 number: they were trained in pure bf16",
            evidence=f"{100 * facts.bf16_valued_frac:.2f} % of them; of weights trained in fp32 0.002 % would be",
            next_step="small updates vanish in bf16: keep the weights in fp32 and autocast the forward pass",
        )


def _by_offset(losses: Mapping[int, float]) -> str:
    return ", ".join(f"{offset:+d} {loss:.3f}".replace("+0 ", "0 ") for offset, loss in sorted(losses.items()))
