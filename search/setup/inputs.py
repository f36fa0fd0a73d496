"""What a run is given: model, text, checkpoint, device. Checked cheaply first, loaded second."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cluster.connection import join
from search.options import Options
from trainable.checkpoint.checkpoint_path import check_checkpoint_path
from trainable.config import TrialConfig
from trainable.data.corpus import cache_dir, embedded_path, iter_chunks, source_files, text_fingerprint
from trainable.model.fingerprint import file_fingerprint, model_fingerprint
from trainable.model.model_names import check_model_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from search.cluster.connection import Cluster
    from trainable.device.compiling import CompileMode
    from trainable.device.device import DeviceInfo
    from trainable.run import RunSpec

DEFAULT_MODEL = "tiny"
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The user's choice of model, text, checkpoint and device, each known to exist."""

    model_name: str
    data_source: str | None
    """Absolute path; None for the embedded text."""
    files: tuple[Path, ...]
    checkpoint_path: Path | None
    device: str | None
    compile_mode: "CompileMode" = "auto"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The inputs, loaded: what training needs, and what a study records of it."""

    spec: "RunSpec"
    tokenizer: "Tokenizer"
    device_info: "DeviceInfo"
    cluster: "Cluster | None"
    """That trains, where it is not this machine; device_info is its workers'."""
    facts: Mapping[str, Any]
    """What study.json says of model, text and weights, with fingerprints: two studies compare where they are equal."""

    @property
    def corpus_facts(self) -> Mapping[str, Any]:
        """study.json's "corpus"."""
        corpus: Mapping[str, Any] = self.facts["corpus"]
        return corpus


def check_inputs(options: Options, *, progress: Progress) -> Inputs:
    """Return the inputs, checked without loading torch. Raises UserError."""
    model_name = _checked_model_name(options.gpt2_model_name or DEFAULT_MODEL)
    checkpoint_path = options.checkpoint_path
    if checkpoint_path is not None:
        check_checkpoint_path(checkpoint_path)
    cache_dir()
    source = options.training_data_source
    if source is None and not embedded_path().exists():
        progress("gathering the embedded text", 0.0)
    files = tuple(source_files(str(source) if source else None))
    _check_text(files)
    return Inputs(
        model_name=model_name,
        data_source=str(source) if source else None,
        files=files,
        checkpoint_path=checkpoint_path,
        device=options.device,
        compile_mode=options.compile,
    )


def load_inputs(
    inputs: Inputs,
    *,
    block_size: int,
    eval_tokens: int,
    stability: Mapping[str, Any],
    init_from: Path | None,
    progress: Progress,
    address: str | None = None,
    storage: str | None = None,
) -> Loaded:
    """Return the inputs loaded: the corpus tokenized into the cache, the device chosen. Raises UserError.

    block_size and eval_tokens are the evaluation's. address is of a Ray cluster that trains: this machine then only
    prepares, on whatever device it has. storage is what the cluster's nodes must share.
    """
    progress("loading torch", 0.0)
    from trainable.device.device import device_info, pick_device

    # Before transformers is imported, which takes longer than torch.
    device = pick_device(None if address else inputs.device)
    from trainable.data.tokens import load_corpus
    from trainable.evaluation import EvalProtocol
    from trainable.model.models import load_tokenizer
    from trainable.run import RunSpec

    files = list(inputs.files)
    tokenizer = load_tokenizer(inputs.model_name, files, progress=progress)
    corpus = load_corpus(files, tokenizer, progress=progress)
    spec = RunSpec(
        model_name=inputs.model_name,
        corpus=corpus,
        protocol=EvalProtocol(block_size=block_size, tokens=eval_tokens),
        device=str(device),
        unigram_entropy=corpus.unigram_entropy,
        init_from=init_from,
        stability=stability,
        compile_mode=inputs.compile_mode,
    )
    facts = {
        "model": inputs.model_name,
        "model_fingerprint": model_fingerprint(inputs.model_name),
        "data_source": inputs.data_source,
        "checkpoint_path": str(inputs.checkpoint_path) if inputs.checkpoint_path else None,
        "checkpoint_fingerprint": file_fingerprint(inputs.checkpoint_path) if inputs.checkpoint_path else None,
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val),
            "vocab_size": corpus.vocab_size,
            "unigram_entropy": corpus.unigram_entropy,
        },
    }
    cluster = None
    if address is not None:
        progress(f"joining the Ray cluster at {address}", 0.0)
        cluster = join(address, storage, device=inputs.device)
    return Loaded(
        spec=spec,
        tokenizer=tokenizer,
        device_info=cluster.device_info if cluster else device_info(device),
        cluster=cluster,
        facts=facts,
    )


def check_fit(loaded: Loaded, configs: list[TrialConfig]) -> None:
    """Raise UserError when a configuration asks for longer blocks than model or corpus have, or weights do not fit."""
    from trainable.run import start_run

    longest = max(configs, key=lambda config: config.block_size)
    start_run(replace(loaded.spec, compile_mode="off"), longest)


def _checked_model_name(name: str) -> str:
    check_model_name(name)
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_dir() else name


def _check_text(files: tuple[Path, ...]) -> None:
    # Reading it all here costs a tenth of what tokenizing costs, and a bad byte is named before torch is loaded.
    text_fingerprint(list(files))
    for _ in iter_chunks(list(files)):
        pass
