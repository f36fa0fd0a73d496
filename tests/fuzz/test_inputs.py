"""Whatever a cache, a received study's folder or a model's folder holds: one line or the right tokens and weights."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from results.study.folder import Study
from results.study.lock import hold
from tests.fuzz.commands import run
from tests.fuzz.outcome import CASES, EXAMPLES, attempt
from tests.fuzz.studies import Files, cut, damaged, odd, put, whole_study
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.data.cache_files import sum_path
from trainable.data.corpus import source_files
from trainable.data.tokens import load_corpus, train_tokenizer
from trainable.model.fingerprint import weight_sums
from trainable.model.model_names import check_model_name
from trainable.model.models import folder_weights, load_model, load_tokenizer
from trainable.regular_files import MAX_FILE_BYTES

FOUND = [Phase.explicit, Phase.generate]
CACHES = settings(max_examples=max(40, EXAMPLES), phases=FOUND)
FOLDERS = settings(max_examples=max(30, EXAMPLES // 2), phases=FOUND)
MODELS = settings(max_examples=max(30, EXAMPLES // 3), phases=FOUND)
TEXT = "the words of a small text, and more of them\nin lines\n" * 20


Draw = Callable[[st.SearchStrategy[Any]], Any]
HARMS = ["cut", "flip", "zero", "other", "bytes", "gone", "pipe", "folder", "link", "grown"]
HARMS += ["hard link", "terabyte", "head", "twice", "double", "socket"]


def counted(kind: str, folder: Path) -> None:
    """Count what lies in the folder as a case of its kind, once however often it is drawn."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        digest.update(os.fsencode(path.relative_to(folder)) + f" {found.st_mode} {found.st_size} ".encode())
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file() and found.st_size < MAX_FILE_BYTES:
            digest.update(path.read_bytes())
    CASES[kind].add(digest.hexdigest())


def harm(draw: Draw, path: Path, other: Path) -> None:
    """Change, replace or remove a file."""
    data = path.read_bytes() if path.is_file() and path.stat().st_size < MAX_FILE_BYTES else b""
    how = draw(st.sampled_from(HARMS))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match how:
        case "cut":
            path.write_bytes(draw(cut(data)))
        case "flip" if data:
            at = draw(st.integers(0, len(data) - 1))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :])
        case "zero":
            path.write_bytes(bytes(len(data)))
        case "other":
            path.write_bytes(other.read_bytes())
        case "bytes":
            path.write_bytes(draw(st.binary(max_size=200)))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(draw(st.sampled_from([str(other), str(path.parent), "/nowhere", path.name])))
        case "grown":
            path.write_bytes(data + draw(st.binary(min_size=1, max_size=9)))
        case "hard link":
            path.hardlink_to(other)
        case "terabyte":
            path.write_bytes(data[: draw(st.integers(0, 200))])
            os.truncate(path, 1 << 40)
        case "head":  # the rest is what a power cut leaves of it
            at = draw(st.integers(0, len(data)))
            path.write_bytes(data[:at] + bytes(len(data) - at))
        case "twice":
            path.write_bytes(data * 2)
        case "double":
            path.with_name(path.name.swapcase()).write_bytes(other.read_bytes())
            path.write_bytes(data)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one, suppress(OSError):  # too long a path
                one.bind(str(path))


@pytest.fixture(scope="module")
def text(own_environment: Path) -> Path:
    """A small text."""
    path = own_environment / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def tokens(text: Path) -> list[int]:
    """Its tokens, by no cache."""
    found: list[int] = train_tokenizer([text], 270).encode(TEXT).ids
    return found


@CACHES
@given(data=st.data())
def test_no_harmed_cache_is_trained_on(text: Path, tokens: list[int], data: st.DataObject) -> None:
    def load() -> list[int]:
        corpus = load_corpus([text], train_tokenizer([text], 270))
        found: list[int] = corpus.tokens.tolist()
        return found

    cache = Path(os.environ["CACHE_DIR"])
    shutil.rmtree(cache, ignore_errors=True)
    assert load() == tokens
    files = sorted(path for path in cache.iterdir() if "language" not in path.name)
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3)):
        harm(data.draw, path, text)
    counted("cache", cache)
    found = attempt("cache harmed: tokens", load)
    assert found in (None, tokens)
    assert text.read_text() == TEXT, "something outside the cache was written"


@settings(max_examples=max(10, EXAMPLES // 20), phases=FOUND)
@given(data=st.data())
def test_no_harmed_embedded_text_is_trained_on(text: Path, data: st.DataObject) -> None:
    shutil.rmtree(os.environ["CACHE_DIR"], ignore_errors=True)
    [path] = source_files(None)
    whole = path.read_bytes()
    harm(data.draw, data.draw(st.sampled_from([path, sum_path(path)])), text)
    counted("cache", path.parent)
    found = attempt("cache harmed: embedded text", lambda: source_files(None))
    assert found is None or found[0].read_bytes() == whole


NAMES = [
    *("trials.parquet", "metrics.parquet", "study.json", "steps/0.parquet", "confirmation.json", "warm_start.json"),
    *(".holder.json", ".lock", "search.log", "report.html", "best.env", ".trials.parquet.previous"),
    *(
        "steps",
        "checkpoints",
        "checkpoints/0",
        "checkpoints/0/step_00000001.pt",
        "ray",
        ".x.tmp",
        "checkpoints/0/.x.tmp",
    ),
    *("a\nb", "\x1b[2J\u202e.parquet", "\udcff", "TRIALS.PARQUET", "Steps", "x" * 250),
]
TARGETS = ["{outside}", "{outside}/precious", "{outside}/0", "../..", "..", ".", "study.json", "/", "loop", "{inside}"]


def opened(study: Study) -> None:
    """Do what a command does that runs something into the study, but for the runs."""
    with hold(study):
        store = CheckpointStore(root=str(study.path / "checkpoints"), trial_id=0)
        # As the engine and the view do: a store or a log that cannot be written is no end of a study.
        with suppress(OSError):
            store.forget_after(0)
        with suppress(OSError):
            store.delete()
        with suppress(OSError):
            study.log_path.open("a").close()


READERS: dict[str, Callable[[Study], Any]] = {
    "written": opened,
    "listed": lambda study: run("list", "--json"),
    "exported": lambda study: run("export", "STUDY=one"),
    "trials": Study.trials,
    "metrics": Study.metrics,
}


def content(folder: Path) -> Mapping[str, bytes | None]:
    """Return all below a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class Received:
    """A study, its files as they were, and a folder outside it; short where hypothesis prints it."""

    def __init__(self, study: Study, files: Files, outside: Path) -> None:
        self.study, self.files, self.outside = study, files, outside


@pytest.fixture(scope="module")
def received(own_environment: Path) -> Received:
    """A study and what is not its own."""
    study, files = whole_study(own_environment)
    outside = own_environment / "outside"
    (outside / "0").mkdir(parents=True)
    for name in ("precious", "step_00000001.pt", ".x.tmp", "0/step_00000001.pt", "0/.x.tmp"):
        (outside / name).write_text("precious")
    return Received(study, files, outside)


PLACED = st.one_of(
    st.tuples(st.just("link"), st.sampled_from(TARGETS)),
    st.tuples(st.sampled_from(["pipe", "folder", "hard link", "terabyte"]), st.just("{outside}/precious")),
    st.tuples(st.just("bytes"), st.sampled_from(["", "x", "[]", "[1]", "null"])),
)


def place(path: Path, what: str, value: str) -> None:
    """Put a link, a pipe, a folder or other bytes in a file's place."""
    with suppress(OSError):  # below a file or a broken link that was placed before
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.is_symlink() or not path.parent.is_dir():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match what:
        case "link":
            path.symlink_to(value)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "hard link":
            path.hardlink_to(value)
        case "terabyte":
            path.touch()
            os.truncate(path, 1 << 40)
        case _:
            path.write_text(value)


@FOLDERS
@given(placed=st.lists(st.tuples(st.sampled_from(NAMES), PLACED), max_size=3), data=st.data())
def test_a_received_folder_writes_nothing_outside(
    received: Received, own_environment: Path, placed: list[tuple[str, tuple[str, str]]], data: st.DataObject
) -> None:
    study, outside = received.study, received.outside
    shutil.rmtree(study.path)
    (study.path / "steps").mkdir(parents=True)
    changed = [
        st.just(received.files),
        *(damaged(received.files, own_environment, well_formed=ok) for ok in (False, True)),
    ]
    put(study, data.draw(st.one_of(changed)))
    before = content(outside)
    for name, (what, value) in placed:
        place(study.path / name, what, value.format(outside=outside, inside=study.path / "steps"))
    counted("received study", study.path)
    for name, read in READERS.items():
        attempt(f"received folder: {name}", partial(read, study))
    assert content(outside) == before


@pytest.fixture(scope="module")
def model(own_environment: Path, text: Path) -> Path:
    """A model's folder, as save_pretrained writes it."""
    torch.manual_seed(0)
    folder = own_environment / "whole-model"
    shape = GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=270, n_positions=16, bos_token_id=None, eos_token_id=None
    )
    GPT2LMHeadModel(shape).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([text], 270)).save_pretrained(folder)
    return folder


KERNELS = ["kernels-community/flash-attn", "own.py--own.Model", "flash_attention_2"]
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, 3, -1, 8, 16, 2**40, 1.5, True, None, "", "x", [], {}, "gpt2", *KERNELS]
)
FIELDS = [
    *("n_layer", "n_head", "n_embd", "vocab_size", "n_positions", "model_type", "architectures", "auto_map", "dtype"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config", "use_kernels"),
    *("tie_word_embeddings", "activation_function", "transformers_version", "resid_pdrop", "_name_or_path"),
]
ADDED = [
    "adapter_config.json",
    "own.py",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "special_tokens_map.json",
]
OWN_CODE = {
    "auto_map": {name: ["own.Own", "own.Own"] for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
}
DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "tokenizer_config.json": [
        OWN_CODE,
        {"tokenizer_class": "Own"},
        {"tokenizer_class": "T5Tokenizer"},
        {"eos_token": {"a": 1}},
        {"added_tokens_decoder": {"99999999": {"content": "zz", "special": True}}},
        {"model_max_length": "x"},
    ],
    "generation_config.json": [
        {"temperature": -1, "max_length": "x", "eos_token_id": "[]", "custom_generate": "own.py"}
    ],
    "config.json": [
        OWN_CODE,
        {**OWN_CODE, "model_type": "own"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"trust_remote_code": True},
        {"transformers_weights": "../x.safetensors"},
        {"text_config": {"model_type": "gpt2"}},
    ],
}


class Bomb:
    """What runs code where a file is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("ran", "w")


def claimed(draw: Draw, path: Path) -> None:
    """Have a safetensors header claim other places, shapes and types than its tensors have."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    tensor = header[draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))]
    match draw(st.sampled_from(["offsets", "shape", "dtype", "size"])):
        case "offsets":
            moved = draw(st.sampled_from([-4, 4, 2**40, 2**63 - 1]))
            tensor["data_offsets"] = [at + moved for at in tensor["data_offsets"]]
        case "shape":
            tensor["shape"] = draw(st.lists(st.sampled_from([0, 1, 3, 2**40, -1]), max_size=3))
        case "dtype":
            tensor["dtype"] = draw(st.sampled_from(["F64", "BF16", "I32", "F8_E4M3", "X"]))
        case _:
            size = draw(st.sampled_from([0, 2**40, 2**64 - 1])) - len(json.dumps(header))
    text = json.dumps(header).encode()
    path.write_bytes(((len(text) + max(size, 0)) % 2**64).to_bytes(8, "little") + text + body)


def elsewhere(draw: Draw, folder: Path) -> None:
    """Put the weights where an index or a link names them: beside, below or outside of the folder."""
    weights = folder / "model.safetensors"
    name = draw(st.sampled_from(["../x.safetensors", "sub/x.safetensors", "x.safetensors", str(folder.parent / "x")]))
    (folder / "sub").mkdir()
    names = list(load_file(weights))
    weights.replace(folder / name)
    if draw(st.booleans()):
        weights.symlink_to(name)
    else:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))


@MODELS
@given(data=st.data())
def test_a_received_model_is_its_weights_or_a_line(
    model: Path, own_environment: Path, text: Path, data: st.DataObject
) -> None:
    folder = own_environment / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    how = data.draw(
        st.sampled_from(["config", "files", "tensors", "added", "claims", "elsewhere", "documents", "other tokenizer"])
    )
    weights = load_file(folder / "model.safetensors")
    match how:
        case "config":
            for name in data.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2)):
                config[name] = data.draw(VALUES | odd)
            (folder / "config.json").write_text(json.dumps(config))
        case "files":
            path = data.draw(st.sampled_from(sorted(folder.iterdir())))
            harm(data.draw, path, text)
        case "tensors":
            name = data.draw(st.sampled_from(sorted(weights)))
            tensor = weights.pop(name)
            match data.draw(st.sampled_from(["gone", "renamed", "short", "layer"])):
                case "renamed":
                    weights[f"{name}.x"] = tensor
                case "short":
                    weights[name] = tensor[:-1].clone()
                case "layer":
                    weights |= {name: tensor, "transformer.h.7.ln_1.weight": torch.ones(8)}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        case "claims":
            claimed(data.draw, folder / "model.safetensors")
        case "elsewhere":
            elsewhere(data.draw, folder)
        case "documents":
            document = folder / data.draw(st.sampled_from(sorted(DOCUMENTS)))
            changes = data.draw(st.sampled_from(DOCUMENTS[document.name])) | data.draw(st.dictionaries(st.text(), odd))
            document.write_text(json.dumps({**json.loads(document.read_bytes()), **changes}))
            (folder / "own.py").write_text("open('ran', 'w')")
        case "other tokenizer":
            count = data.draw(st.integers(258, 300))
            train_tokenizer([text], count).save(str(folder / "tokenizer.json"))
            vocabulary = json.loads((folder / "tokenizer.json").read_bytes())
            for token, number in data.draw(
                st.dictionaries(st.text(max_size=3), st.integers(-1, 2**33), max_size=2)
            ).items():
                vocabulary["model"]["vocab"][token] = number
            (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
        case _:
            name = data.draw(st.sampled_from(ADDED))
            (folder / name).write_text("open('ran', 'w')" if name == "own.py" else "{}")
            if name == "pytorch_model.bin":
                (folder / "model.safetensors").unlink()
                torch.save({"transformer.wte.weight": Bomb()}, folder / name)
    counted("model folder", folder)

    def load() -> tuple[dict[str, torch.Tensor], Tokenizer]:
        check_model_name(str(folder))
        tokenizer = load_tokenizer(str(folder), [text])
        weight_sums(str(folder), None)
        found = load_model(str(folder), dropout=0.0, seed=1)
        folder_weights(folder)
        return found.state_dict(), tokenizer

    found = attempt(f"model {how}", load)
    assert not (own_environment / "ran").exists()
    if found is not None:
        own = folder / "model.safetensors"
        for name, tensor in load_file(own if own.exists() else model / own.name).items():
            key = name if name in found[0] else f"transformer.{name}"
            assert key not in found[0] or torch.equal(found[0][key], tensor.float()), name
