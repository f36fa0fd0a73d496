"""The inputs of a run: model, text, checkpoint, device. They are checked cheaply first and loaded second."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cluster.connection import join
from search.options import Options
from search.tune.fork_server import start_fork_server
from trainable.checkpoint.checkpoint_path import check_checkpoint_path
from trainable.config import TrialConfig
from trainable.data.corpus import TextFacts, cache_dir, check_apart, embedded_text_is_cached, read_facts, source_files
from trainable.errors import UserError
from trainable.model.fingerprint import checkpoint_fingerprint, model_fingerprint, weight_sums
from trainable.model.hub_models import fetch
from trainable.model.model_names import (
    DEFAULT_MODEL,
    SHIPPED,
    check_model_name,
    is_to_fetch,
    model_folder,
    model_of_folder,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from search.cluster.connection import Cluster
    from trainable.data.tokens import Corpus
    from trainable.device.device import DeviceInfo
    from trainable.run import RunSpec

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The user's choice of model, text and checkpoint, each known to exist."""

    options: Options
    model_name: str
    files: list[Path]
    text: TextFacts
    validation_files: list[Path] = field(default_factory=list)
    """None hold out the tail of the training text."""
    validation_text: TextFacts | None = None

    @property
    def source_words(self) -> str:
        """Where the text is from."""
        return str(self.options.training_data_source or "the Python language reference")

    @property
    def source_lines(self) -> list[str]:
        """Lines for the user on the text that was found."""
        held_out = self.options.validation_data_source
        lines = [f"text: {self.source_words}, {self.text.words}", *self.text.notes]
        if self.validation_text is not None:
            lines += [f"held out: {held_out}, {self.validation_text.words}", *self.validation_text.notes]
        return lines


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The inputs, loaded: what training needs, and what a study records of it."""

    inputs: Inputs
    spec: "RunSpec"
    tokenizer: "Tokenizer"
    device_info: "DeviceInfo"
    cluster: "Cluster | None"
    """Where the trials run, if not on this machine; device_info is then its workers'."""
    facts: Mapping[str, Any]
    """What study.json says of model, text and weights, with fingerprints: equal ones make two studies comparable."""

    @property
    def text_lines(self) -> list[str]:
        """Lines for the user on the text that was found, and on what separates its documents, where it has several."""
        if self.inputs.text.documents < 2:
            return self.inputs.source_lines
        between = "the tokenizer has no end-of-text token: nothing stands between two documents"
        if (separator := self.facts["corpus"]["separator"]) is not None:
            between = f"{separator} stands between two documents"
        return [*self.inputs.source_lines, between]


def check_inputs(options: Options, *, progress: Progress) -> Inputs:
    """Return the inputs, checked without loading torch. Raises UserError."""
    checkpoint_path = options.checkpoint_path
    if checkpoint_path is not None:
        check_checkpoint_path(checkpoint_path)
    model_name = options.gpt2_model_name or model_of_folder(checkpoint_path) or DEFAULT_MODEL
    check_model_name(model_name)
    if model_name not in SHIPPED:
        model_name = str(model_folder(model_name) or model_name)
    cache_dir()
    source = options.training_data_source
    if source is None and not embedded_text_is_cached():
        progress("gathering the Python language reference", 0.0)
    documents = options.documents
    if source is None and documents.kind == "jsonl":
        raise UserError(f"DOCUMENTS={documents} needs a TRAINING_DATA_SOURCE: the built-in text is not JSON lines.")
    files, held_out = source_files(str(source) if source else None, documents=documents), list[Path]()
    if options.validation_data_source is not None:
        name = "VALIDATION_DATA_SOURCE"
        held_out = source_files(str(options.validation_data_source), variable=name, documents=documents)
        check_apart(files, held_out)
    # Reading the text takes a tenth of the time of tokenizing it, and finds a bad byte before torch is loaded.
    reading, reading_other = (partial(progress, f"reading the {text}") for text in ("text", "held-out text"))
    return Inputs(
        options=options,
        model_name=model_name,
        files=files,
        text=read_facts(files, documents, progress=reading),
        validation_files=held_out,
        validation_text=read_facts(held_out, documents, progress=reading_other) if held_out else None,
    )


def load_inputs(
    inputs: Inputs,
    *,
    block_size: int,
    eval_tokens: int,
    progress: Progress,
    stability: Mapping[str, Any] | None = None,
    init_from: Path | None = None,
    own_device: str | None = None,
    joins: bool = False,
) -> Loaded:
    """Return the inputs loaded: the corpus tokenized into the cache, the device chosen. Raises UserError.

    block_size and eval_tokens are the evaluation's. own_device: the type that a reopened study ran on, which is taken
    where it is here and DEVICE names none. joins: the Ray cluster at ADDRESS is joined and trains, and this
    machine only prepares, on any device.
    """
    progress("loading torch", 0.0)
    from trainable.device.device import device_info, pick_device

    options = inputs.options
    address = options.address if joins else None
    source, held_out = options.training_data_source, options.validation_data_source
    checkpoint_path = options.checkpoint_path
    # Before transformers is imported, which takes longer than torch.
    device = pick_device(None if address else options.device, own=own_device)
    from trainable.evaluation import EvalProtocol
    from trainable.run import RunSpec

    # Each collection would walk all that the libraries brought, a quarter of a second long, and in a forked worker copy
    # it.
    gc.freeze()
    # The client of an object store has been asked already, and its threads do not survive a fork.
    has_client = options.storage is not None and "://" in options.storage
    if joins and address is None and device.type == "cpu" and not has_client:
        start_fork_server()
    if is_to_fetch(inputs.model_name):
        progress(f"fetching {inputs.model_name} from the hub", 0.0)
        fetch(inputs.model_name)
    tokenizer, end_id, corpus = load_text(inputs, progress, sample_prompt=options.sample_prompt)
    spec = RunSpec(
        model_name=inputs.model_name,
        corpus=corpus,
        protocol=EvalProtocol(block_size=block_size, tokens=eval_tokens),
        device=str(device),
        unigram_entropy=corpus.unigram_entropy,
        init_from=init_from,
        weight_sums=weight_sums(inputs.model_name, init_from),
        stability=stability or {},
        compile_mode=options.compile,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    facts = {
        "model": inputs.model_name,
        "model_fingerprint": model_fingerprint(inputs.model_name),
        "data_source": str(source) if source else None,
        "validation_data_source": str(held_out) if held_out else None,
        "documents": str(options.documents),
        "checkpoint_path": str(checkpoint_path) if checkpoint_path else None,
        "checkpoint_fingerprint": checkpoint_fingerprint(checkpoint_path) if checkpoint_path else None,
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "validation_fingerprint": corpus.validation.fingerprint if corpus.validation else None,
            "documents": inputs.text.documents,
            "separator": None if end_id is None else tokenizer.id_to_token(end_id),
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val),
            "vocab_size": corpus.vocab_size,
            "unigram_entropy": corpus.unigram_entropy,
        },
    }
    cluster = None
    if address is not None:
        progress(f"joining the Ray cluster at {address}", 0.0)
        cluster = join(address, options.storage, device=options.device)
    return Loaded(
        inputs=inputs,
        spec=spec,
        tokenizer=tokenizer,
        device_info=cluster.device_info if cluster else device_info(device),
        cluster=cluster,
        facts=facts,
    )


def load_text(
    inputs: Inputs, progress: Progress, *, sample_prompt: str | None = None
) -> "tuple[Tokenizer, int | None, Corpus]":
    """Return the model's tokenizer, the token between two documents, and the text in tokens. Raises UserError."""
    from trainable.data.tokens import load_corpus
    from trainable.model.models import load_tokenizer, separator_id
    from trainable.sampling import prompt_ids

    documents = inputs.options.documents
    tokenizer = load_tokenizer(inputs.model_name, inputs.files, documents=documents, progress=progress)
    if sample_prompt is not None:
        prompt_ids(tokenizer, sample_prompt)
    end_id = separator_id(inputs.model_name, tokenizer)
    corpus = load_corpus(
        inputs.files,
        tokenizer,
        documents=documents,
        separator_id=end_id,
        validation_files=inputs.validation_files,
        progress=progress,
    )
    return tokenizer, end_id, corpus


def check_fit(loaded: Loaded, configs: list[TrialConfig]) -> None:
    """Raise UserError when a configuration asks for longer blocks than model or corpus have, or for adapters of layers
    that the model lacks, or weights do not fit."""
    from trainable.model.lora import add_adapters, merge_adapters
    from trainable.run import start_run

    longest = replace(max(configs, key=lambda config: config.block_size), use_lora=False)
    # On the CPU, so that the check takes no GPU memory.
    model = start_run(replace(loaded.spec, compile_mode="off", device="cpu"), longest).model
    for config in {config.lora_targets: config for config in configs if config.use_lora}.values():
        add_adapters(model, config)
        merge_adapters(model)
