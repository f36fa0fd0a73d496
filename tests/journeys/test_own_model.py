"""A person's own text, settings and pretrained model, from a search to a model in a folder that transformers loads."""

import subprocess
import sys
from pathlib import Path

from results.winner import winner_of
from tests.journeys.conftest import Shell, purposes, study_agrees
from tests.narrow import narrow_model
from trainable.data.corpus import language_reference

SETTINGS = """
# What my script trains with.
export BATCH_SIZE=8
BLOCK_SIZE=32
LEARNING_RATE="2e-5"
USE_LR_WARMUP=False
"""
LOADS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
ids = tokenizer("Return the name of", return_tensors="pt").input_ids
print(model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] - ids.shape[1])
"""


def test_from_own_settings_and_model_to_a_better_model_in_a_folder(shell: Shell, space: Path, tmp_path: Path) -> None:
    narrow_model(tmp_path).rename(tmp_path / "my-gpt2")
    (tmp_path / "qa.txt").write_text(language_reference()[:400_000], encoding="utf-8")
    (tmp_path / "mine.env").write_text(SETTINGS, encoding="utf-8")
    shell("unset GPT2_MODEL_NAME; export SEEDS=2 TOP=1 BUDGET_TOKENS=3072")
    own = f"GPT2_MODEL_NAME={tmp_path}/my-gpt2 TRAINING_DATA_SOURCE={tmp_path}/qa.txt"
    searched = shell(f"make search SPACE={space} BASELINE={tmp_path}/mine.env {own} STUDY=mine")
    study = shell.study("mine")
    study_agrees(study)
    baseline = study.document()["baseline"]
    assert (baseline["batch_size"], baseline["block_size"], baseline["learning_rate"]) == (8, 32, 2e-5)
    assert "mine.env" in searched.output
    assert "start " in searched.output

    shell("make confirm STUDY=mine")
    study_agrees(study)
    assert purposes(study)["confirmation"] == 4
    out = tmp_path / "better"
    assert "its val loss is" in shell(f"make model STUDY=mine OUT={out}").output
    loaded = subprocess.run([sys.executable, "-c", LOADS, str(out)], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "4"
    diagnosed = shell(f"make diagnose TARGET={out} {own}")
    assert "nothing wrong found" in diagnosed.output.lower()
    assert winner_of(study).trial is not None
