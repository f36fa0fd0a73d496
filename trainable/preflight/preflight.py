"""Preflight: the checks that show in half a minute whether a set-up is sound. It changes and prints nothing."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from trainable.checkpoint.checkpoint import Checkpoint, read_checkpoint
from trainable.config import TrialConfig
from trainable.data.text_documents import WHOLE_FILES, Documents
from trainable.data.tokens import check_corpus
from trainable.device.device import untouched_rng, without_tf32
from trainable.device.device_memory import is_out_of_memory, release_memory
from trainable.model.model_names import PRESETS, SHIPPED
from trainable.model.models import load_model
from trainable.preflight.check_result import Check
from trainable.preflight.configuration import check_schedule
from trainable.preflight.corpus_checks import check_overlap, check_tokenizer_fit
from trainable.preflight.initial_weights import Origin
from trainable.preflight.memory import CheckpointRoom, check_disk
from trainable.preflight.training import Setup, base_predictions, check_model_setup
from trainable.run import RunSpec, load_run_model


def run_preflight(
    spec: RunSpec,
    config: TrialConfig,
    *,
    tokenizer: Tokenizer,
    files: Sequence[Path] = (),
    documents: Documents = WHOLE_FILES,
    largest: TrialConfig | None = None,
    checkpoint: Checkpoint | Path | None = None,
    available_bytes: int | None = None,
    room: CheckpointRoom | None = None,
) -> Iterator[Check]:
    """Yield each check as it is done, on the spec's model, data and device and the real loop.

    files, documents: the text behind the corpus, for the tokenizer's round trip. largest: the biggest batch and block
    that the study can propose (default: config's). checkpoint: where to go on from, or its path (default: what the spec
    starts from).
    available_bytes: memory for one run (default: all that the device has left). room: for the checkpoints that the
    study keeps (default: not looked at). What was loaded is given back at the end. Between two checks torch's random
    numbers are the caller's. Raises UserError when model, checkpoint or corpus cannot be used at all.
    """
    device = torch.device(spec.device)
    if isinstance(checkpoint, Path):
        checkpoint = read_checkpoint(checkpoint)
    setup = Setup(
        spec=spec,
        tokenizer=tokenizer,
        config=config,
        largest=largest or config,
        origin=_origin(spec, checkpoint),
        available_bytes=available_bytes,
    )
    checks = _checks(setup, checkpoint, files, documents, room)
    del checkpoint
    try:
        while True:
            with untouched_rng(device), without_tf32():
                check = _next(checks, device)
            if check is None:
                return
            yield check
    finally:
        checks.close()
        release_memory(device)


def _origin(spec: RunSpec, checkpoint: Checkpoint | None) -> Origin:
    if checkpoint is not None or spec.init_from is not None:
        return "checkpoint"
    if spec.from_scratch:
        return "random"
    return "shipped" if spec.model_name in SHIPPED else "named"


def _next(checks: Generator[Check], device: torch.device) -> Check | None:
    try:
        return next(checks, None)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # The last one, for a generator that has raised is over.
    return Check(
        name="memory for a small step",
        status="fail",
        measured=f"{device.type} ran out of memory at a few hundred tokens",
        expected="room for the model, its gradients and AdamW's two states",
        advice="Use a smaller model or a device with more memory, or stop what else uses it.",
    )


def _checks(
    setup: Setup,
    checkpoint: Checkpoint | None,
    files: Sequence[Path],
    documents: Documents,
    room: CheckpointRoom | None,
) -> Generator[Check]:
    """Yield the checks; checkpoint: the one to start from, which is kept alive no longer than it is needed."""
    spec, config = setup.spec, setup.config
    yield check_schedule(config)
    for shape in (config, setup.largest):
        check_corpus(spec.corpus, block_size=shape.block_size, eval_block_size=spec.protocol.block_size)
    yield check_tokenizer_fit(setup.tokenizer, spec.corpus, files, documents)
    yield check_overlap(spec.corpus, setup.tokenizer)
    device, base = torch.device(spec.device), None
    if setup.origin == "checkpoint" and spec.model_name not in PRESETS:
        base = load_model(spec.model_name, dropout=config.dropout, seed=config.seed)
        setup = replace(setup, base=base_predictions(base.to(device), setup))
        base = base.to("cpu")
    model = load_run_model(spec, config, checkpoint, model=base)[0].to(device)
    del checkpoint, base
    if room is not None:
        yield check_disk(model, room)
    yield from check_model_setup(model, setup)
