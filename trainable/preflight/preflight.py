"""Preflight: the checks that show in half a minute whether a set-up is sound. It changes and prints nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from trainable.checkpoint.checkpoint import Checkpoint
from trainable.config import TrialConfig
from trainable.data.tokens import check_corpus
from trainable.device.device import is_out_of_memory
from trainable.model.model_names import SHIPPED
from trainable.preflight.check_result import Check, CheckStatus
from trainable.preflight.configuration import check_schedule
from trainable.preflight.corpus_checks import check_overlap, check_tokenizer_fit
from trainable.preflight.label_check import check_labels
from trainable.preflight.offset_profile import offset_profile
from trainable.preflight.training import Setup, check_model_setup
from trainable.preflight.untouched import untouched_rng
from trainable.run import RunSpec, load_run_model

__all__ = ["Check", "CheckStatus", "check_labels", "offset_profile", "run_preflight"]


OUT_OF_MEMORY = "memory for a small step"


@dataclass(frozen=True, kw_only=True)
class _Request:
    config: TrialConfig
    tokenizer: Tokenizer
    files: tuple[Path, ...]
    largest: TrialConfig
    available_bytes: int | None


def run_preflight(
    spec: RunSpec,
    config: TrialConfig,
    *,
    tokenizer: Tokenizer,
    files: Sequence[Path] = (),
    largest: TrialConfig | None = None,
    checkpoint: Checkpoint | None = None,
    available_bytes: int | None = None,
) -> Iterator[Check]:
    """Yield each check as it is done, on the spec's model, data and device and the real loop.

    files: the text behind the corpus, for the tokenizer's round trip. largest: the biggest batch and block that the
    study can propose (default: config's). checkpoint: where to go on from (default: what the spec starts from).
    available_bytes: memory for one run (default: all that the device has left). Between two checks torch's random
    numbers are the caller's. Raises UserError when model, checkpoint or corpus cannot be used at all.
    """
    device = torch.device(spec.device)
    request = _Request(
        config=config,
        tokenizer=tokenizer,
        files=tuple(files),
        largest=largest or config,
        available_bytes=available_bytes,
    )
    checks = _checks(spec, request, checkpoint)
    while True:
        with untouched_rng(device):
            check = _next(checks, device)
        if check is None:
            return
        yield check
        if check.name == OUT_OF_MEMORY:
            return


def _next(checks: Iterator[Check], device: torch.device) -> Check | None:
    try:
        return next(checks, None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return Check(
        name=OUT_OF_MEMORY,
        status="fail",
        measured=f"{device.type} ran out of memory at a few hundred tokens",
        expected="room for the model, its gradients and AdamW's two states",
        advice="Use a smaller model or a device with more memory, or stop what else uses it.",
    )


def _checks(spec: RunSpec, request: _Request, checkpoint: Checkpoint | None) -> Iterator[Check]:
    config = request.config
    yield check_schedule(config)
    for shape in (config, request.largest):
        check_corpus(spec.corpus, block_size=shape.block_size, eval_block_size=spec.protocol.block_size)
    yield check_tokenizer_fit(request.tokenizer, spec.corpus, request.files)
    yield check_overlap(spec.corpus, request.tokenizer)
    model, _ = load_run_model(spec, config, checkpoint)
    setup = Setup(
        corpus=spec.corpus,
        tokenizer=request.tokenizer,
        config=config,
        largest=request.largest,
        protocol=spec.protocol,
        unigram_entropy=spec.unigram_entropy,
        shipped=spec.model_name in SHIPPED and checkpoint is None,
        random_weights=spec.from_scratch and checkpoint is None,
        checkpoint=checkpoint is not None or spec.init_from is not None,
        available_bytes=request.available_bytes,
    )
    yield from check_model_setup(model.to(torch.device(spec.device)), setup)
