"""BASELINE from files: a .env, checkpoints of ours and of others, a real Trainer's folder, a saved model."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from results.study.folder import Study
from results.study.tables import TRIALS, write_table
from search.setup.baseline_sources import read_baseline
from spaces.overrides import Settings, widening_words, with_overrides
from spaces.read.load import load_space
from tests.documents import sound_document
from tests.rows import trial_row
from trainable.checkpoint.checkpoint import save_checkpoint
from trainable.checkpoint.trainer_args import read_trainer_args
from trainable.config import BEFORE, DOCUMENTED, TrialConfig
from trainable.errors import UserError
from trainable.run import RunSpec, start_run

OWN = """
# what plateaued
export BATCH_SIZE=16 BLOCK_SIZE="256"
LEARNING_RATE='3e-5'   # the peak
export USE_LR_WARMUP=True
TRAINING_STEPS=4000;
WEIGHT_DECAY=
GPT2_MODEL_NAME=gpt2
CUDA_VISIBLE_DEVICES=0
DATA=$HOME/texts
"""


@pytest.fixture
def env(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "mine.env"
        path.write_bytes(text.encode("utf-8-sig").replace(b"\n", b"\r\n"))
        return str(path)

    return write


def test_an_env_file_is_read_as_a_shell_would(env: Callable[[str], str]) -> None:
    path = env(OWN)
    baseline = read_baseline(path)
    expected = replace(
        DOCUMENTED, batch_size=16, block_size=256, learning_rate=3e-5, lr_schedule="warmup_cosine", training_steps=4000
    )
    # The owner's scripts warm up for a tenth where nothing says how long.
    assert (baseline.name, baseline.config) == ("mine.env", replace(expected, warmup_steps=400))
    first, missing, left = baseline.notes
    assert first.startswith(f"baseline {path}: batch 16 x block 256, LR 3.00e-05, warmup_cosine")
    assert "does not say grad_accum_steps 1, warmup_steps 400, grad_clip_norm 1, weight_decay 0.01" in missing
    assert "also says GPT2_MODEL_NAME, CUDA_VISIBLE_DEVICES (not known), DATA (not known)" in left


@pytest.mark.parametrize("text", ["BATCH_SIZE = 8", "export BATCH_SIZE= 8  # small", "WEIGHT_DECAY= BATCH_SIZE=8"])
def test_an_env_file_may_have_blanks_around_the_sign(env: Callable[[str], str], text: str) -> None:
    assert read_baseline(env(text)).config == replace(DOCUMENTED, batch_size=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LEARNING_RAET=3e-5", "there is no variable 'LEARNING_RAET'. Did you mean 'LEARNING_RATE'?"),
        ("BATCH_SIZE=8 LR=3e-5", "there is no variable 'LR'. Did you mean 'LEARNING_RATE'?"),
        ("LEARNING_RATE=fast", "LEARNING_RATE='fast' is not a number"),
        ("BATCH_SIZE=0", "batch_size (BATCH_SIZE) is 0"),
        ("BATCH_SIZE=$N", "line 1: BATCH_SIZE refers to another variable, which is not followed. Write its value."),
        ("SEED=1\nBATCH_SIZE='16", "line 2 is not NAME=value: No closing quotation."),
        ("python train.py", "line 1 is not NAME=value: 'python train.py'"),
        ("USE_LR_WARMUP=True LR_SCHEDULE=constant", "USE_LR_WARMUP=True contradicts LR_SCHEDULE=constant"),
        ("WANDB_API_KEY=x", "says no hyperparameter; it holds WANDB_API_KEY (not known)"),
        ("", "says no hyperparameter"),
    ],
)
def test_what_is_wrong_in_an_env_file_is_named(env: Callable[[str], str], text: str, message: str) -> None:
    path = env(text)
    with pytest.raises(UserError) as caught:
        read_baseline(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"BASELINE={path}")
    assert "\n" not in str(caught.value)


def test_the_owners_checkpoint_says_its_hyperparameters(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_gpt2_data_step001500_11252025_031000.pt"
    settings = {"batch_size": 8, "block_size": 256, "learning_rate": 2e-5, "lr_schedule": None, "device": "mps"}
    payload = {"step": 1500, "model_state_dict": {"a": torch.zeros(2)}, "hyperparameters": settings}
    torch.save(payload, path)
    baseline = read_baseline(str(path))
    assert baseline.config == replace(DOCUMENTED, batch_size=8, block_size=256, learning_rate=2e-5)
    assert any("also says device mps" in note for note in baseline.notes)
    torch.save({**payload, "hyperparameters": {**settings, "use_lr_warmup": True, "training_steps": 5000}}, path)
    assert read_baseline(str(path)).config == replace(BEFORE, learning_rate=2e-5)
    torch.save({**payload, "hyperparameters": {**settings, "batch_size": "8"}}, path)
    with pytest.raises(UserError, match="batch_size"):
        read_baseline(str(path))
    torch.save({"model_state_dict": {"a": torch.zeros(2)}}, path)
    with pytest.raises(UserError, match="says no hyperparameter"):
        read_baseline(str(path))


def test_nanogpts_names_are_known(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    config = {"batch_size": 12, "block_size": 64, "learning_rate": 6e-4, "max_iters": 3000, "grad_clip": 0.5}
    torch.save({"model": {"a": torch.zeros(2)}, "iter_num": 3, "config": {**config, "min_lr": 6e-5}}, path)
    baseline = read_baseline(str(path))
    assert baseline.config == replace(
        DOCUMENTED, batch_size=12, block_size=64, learning_rate=6e-4, training_steps=3000, grad_clip_norm=0.5
    )
    assert any("min_lr 6e-5" in note or "min_lr 6e-05" in note for note in baseline.notes)


def test_what_lightning_records_is_read(tmp_path: Path) -> None:
    path = tmp_path / "epoch=1-step=40.ckpt"
    torch.save({"state_dict": {"model.a": torch.zeros(2)}, "hyper_parameters": {"lr": 1e-3, "batch_size": 4}}, path)
    assert read_baseline(str(path)).config == replace(DOCUMENTED, learning_rate=1e-3, batch_size=4)


def test_nanogpts_schedule_and_number_format_are_known(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    config = {"learning_rate": 6e-4, "decay_lr": True, "warmup_iters": 200, "min_lr": 6e-5, "dtype": "bfloat16"}
    config |= {"max_iters": 6000, "lr_decay_iters": 6000}
    torch.save({"model": {"a": torch.zeros(1)}, "iter_num": 3, "config": config}, path)
    baseline = read_baseline(str(path))
    read = (baseline.config.lr_schedule, baseline.config.warmup_steps, baseline.config.precision)
    assert read == ("warmup_cosine", 200, "bf16")
    assert baseline.config.min_lr_frac == pytest.approx(0.1)
    assert not any("also says" in note for note in baseline.notes)
    # A whole number in the script is one in the file.
    torch.save({"model": {"a": torch.zeros(1)}, "iter_num": 3, "config": {**config, "min_lr": 0}}, path)
    assert read_baseline(str(path)).config.min_lr_frac == 0.0
    del config["learning_rate"]
    torch.save({"model": {"a": torch.zeros(1)}, "iter_num": 3, "config": {**config, "lr": 6e-4}}, path)
    assert read_baseline(str(path)).config == baseline.config
    torch.save({"model": {"a": torch.zeros(1)}, "iter_num": 3, "config": config | {"decay_lr": False}}, path)
    assert read_baseline(str(path)).config.lr_schedule == "constant"


def test_what_a_file_does_not_say_is_told_without_loras_settings_where_there_is_none(env: Callable[[str], str]) -> None:
    notes = read_baseline(env("LEARNING_RATE=1e-4")).notes
    assert any("does not say" in note for note in notes)
    assert not any("lora" in note for note in notes)
    assert any("lora_targets auto" in note for note in read_baseline(env("USE_LORA=True")).notes)


def test_lora_settings_without_lora(env: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match="LORA_RANK: without USE_LORA no adapters"):
        read_baseline(env("LEARNING_RATE=1e-4\nLORA_RANK=8"))
    assert read_baseline(env("USE_LORA=False\nLORA_RANK=16")).config.lora_rank == 16


def test_our_own_checkpoint_and_model_folder_say_all(spec: RunSpec, tmp_path: Path) -> None:
    config = TrialConfig(batch_size=2, block_size=16, lr_schedule="wsd", warmup_steps=3, training_steps=9, seed=4)
    state = start_run(spec, config)
    save_checkpoint(state, tmp_path / "step_00000003.pt", model_name="tiny", corpus_fingerprint="f")
    baseline = read_baseline(str(tmp_path / "step_00000003.pt"))
    assert (baseline.config, len(baseline.notes)) == (config, 1)
    (tmp_path / "m").mkdir()
    record = {"hyperparameters": {name: getattr(config, name) for name in vars(config)}}
    (tmp_path / "m" / "gpt2_search.json").write_text(json.dumps(record))
    assert read_baseline(str(tmp_path / "m")).config == config


@pytest.fixture(scope="module")
def trainer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint-N of the real Trainer."""
    out = tmp_path_factory.mktemp("trainer")
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=32, n_positions=16))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 32, (24, 8))]
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=4,
        save_steps=4,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        learning_rate=4e-5,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
        max_grad_norm=0.5,
        seed=11,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return out / "checkpoint-4"


def test_a_trainers_arguments_are_read_and_nothing_of_them_runs(trainer_folder: Path) -> None:
    baseline = read_baseline(str(trainer_folder))
    assert baseline.config == replace(
        DOCUMENTED,
        batch_size=2,
        grad_accum_steps=3,
        learning_rate=4e-5,
        lr_schedule="warmup_cosine",
        warmup_steps=2,
        min_lr_frac=0.0,
        training_steps=4,
        weight_decay=0.1,
        grad_clip_norm=0.5,
        seed=11,
    )
    assert any("does not say block_size 128" in note for note in baseline.notes)
    assert read_baseline(str(trainer_folder / "training_args.bin")).config == baseline.config
    with pytest.raises(UserError, match=f"Name one of those in it, such as {trainer_folder}\\.$"):
        read_baseline(str(trainer_folder.parent))


def test_the_adapters_of_a_trainers_checkpoint_are_its_settings_too(trainer_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(trainer_folder, folder)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=0.05, target_modules=["c_proj", "c_attn"], use_rslora=True)
    config.save_pretrained(str(folder))
    baseline = read_baseline(str(folder))
    assert baseline.config == replace(
        read_baseline(str(trainer_folder)).config,
        use_lora=True,
        lora_rank=4,
        lora_alpha=12,
        lora_dropout=0.05,
        lora_targets="c_attn,c_proj",
    )
    assert any("also says use_rslora True" in note for note in baseline.notes)


def test_without_its_arguments_a_trainers_state_still_says_something(trainer_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "trainer_state.json").write_bytes((trainer_folder / "trainer_state.json").read_bytes())
    baseline = read_baseline(str(folder))
    assert (baseline.config.batch_size, baseline.config.training_steps) == (2, 4)
    assert baseline.config.learning_rate == pytest.approx(4e-5)
    assert any("a rate that changes, without saying by which schedule" in note for note in baseline.notes)
    assert read_baseline(str(folder / "trainer_state.json")).config == baseline.config


@pytest.mark.parametrize(
    "state",
    [
        {"num_input_tokens_seen": 960, "global_step": "10"},
        {"num_input_tokens_seen": [960], "global_step": 10},
        {"log_history": [{"learning_rate": "fast"}, {"learning_rate": None}, {"learning_rate": 1e-3}]},
    ],
)
def test_what_is_no_number_in_a_trainers_state_is_passed_over(state: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"train_batch_size": 8, "max_steps": "20", **state}))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": [1, "c_attn"]}))
    config = read_baseline(str(tmp_path)).config
    rate = 1e-3 if "log_history" in state else DOCUMENTED.learning_rate
    assert (config.batch_size, config.block_size, config.learning_rate) == (8, DOCUMENTED.block_size, rate)
    assert (config.training_steps, config.lora_targets) == (DOCUMENTED.training_steps, "1,c_attn")


def test_a_model_that_a_trainer_saved_after_epochs_says_no_steps_and_the_warm_ups_share(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), lr_scheduler_type="cosine", warmup_steps=0.03, use_cpu=True)
    torch.save(arguments, tmp_path / "training_args.bin")
    config = read_baseline(str(tmp_path)).config
    assert (config.training_steps, config.warmup_steps) == (DOCUMENTED.training_steps, 60)


def test_another_export_is_refused_with_what_takes_it(tmp_path: Path) -> None:
    for name, remedy in (("x.toml", "Name it by SPACE"), ("best.json", "Name the study or the folder")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UserError, match=remedy):
            read_baseline(str(tmp_path / name))


def test_a_studys_folder_is_as_good_as_its_name(tmp_path: Path) -> None:
    """A shell completes the path, also of a study that is not in STUDIES_DIR."""
    study = Study(tmp_path / "one")
    study.path.mkdir()
    study.study_json.write_text(json.dumps(sound_document("one")))
    write_table(study.trials_path, [trial_row(0, val_loss=4.5, batch_size=12)], TRIALS)
    for path in (study.path, f"{study.path}/", study.study_json):
        baseline = read_baseline(str(path))
        assert (baseline.name, baseline.config.batch_size) == ("one trial 0", 12)


class Touches:
    """A pickle of it runs a command when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_code_in_a_trainers_arguments_never_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for payload in (Touches(ran), {"learning_rate": Touches(ran)}, [Touches(ran)]):
        torch.save(payload, tmp_path / "training_args.bin")
        with pytest.raises(UserError, match="is not a Trainer's arguments"):
            read_trainer_args(tmp_path)
    for content in (b"", b"PK", pickle.dumps(Touches(ran))):
        (tmp_path / "training_args.bin").write_bytes(content)
        with pytest.raises(UserError, match="is not a Trainer's arguments"):
            read_trainer_args(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("text", ["./gone", "gone.env", "gone.pt", "a/b/c.env"])
def test_what_looks_like_a_path_is_one(text: str) -> None:
    with pytest.raises(UserError, match=f"BASELINE={text}: there is no such file"):
        read_baseline(text)
    assert read_baseline("before").config == BEFORE


def test_a_baseline_outside_of_the_ranges_widens_them(env: Callable[[str], str]) -> None:
    space = load_space("plateau")
    config = read_baseline(env("LEARNING_RATE=50\nBATCH_SIZE=24\nDROPOUT=0.1")).config
    wide = with_overrides(space, Settings(baseline=("mine.env", config)))
    assert wide.baseline.learning_rate == 50
    domains = {parameter.name: parameter.domain for parameter in wide.parameters}
    assert domains["learning_rate"].contains(50.0)
    assert domains["batch_size"].contains(24)
    lines = widening_words(space, wide)
    assert len(lines) == 2
    assert any(line.startswith("learning_rate is searched in log_uniform [") for line in lines)
    assert all(line.endswith(", to hold the baseline") for line in lines)
    assert widening_words(space, with_overrides(space, Settings(baseline=("before", BEFORE)))) == []
