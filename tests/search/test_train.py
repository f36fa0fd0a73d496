"""`make train` in this process: what it logs and saves, and that going on is as never having stopped."""

import errno
import json
import os
import random
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from results.study.folder import Study, studies_dir
from results.study.lock import hold
from results.study.tables import TRIALS, write_table
from search.__main__ import main
from search.commands.train_command import TrainLog
from search.terminal.next_steps import next_steps
from tests.rows import evaluation
from tests.stdlib_text import docstrings
from trainable.checkpoint.checkpoint import save_checkpoint
from trainable.config import HYPERPARAMETERS, TrialConfig
from trainable.errors import UserError
from trainable.loop import train
from trainable.rows import MetricsRow, StepRow, Verdict
from trainable.schedule import learning_rate_at
from trainable.stability import Finding

TINY = {
    "BATCH_SIZE": "2",
    "BLOCK_SIZE": "16",
    "LEARNING_RATE": "1e-3",
    "TRAINING_STEPS": "12",
    "EVAL_INTERVAL": "4",
    "EVAL_TOKENS": "256",
    "EVAL_BLOCK_SIZE": "32",
    "CHECKPOINT_INTERVAL": "6",
    "SEED": "5",
    "DEVICE": "cpu",
}
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences over 2,000 made-up words, some far more frequent than others: a dozen steps lower the loss on them."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(2000)]
    weights = [1 / (rank + 5) for rank in range(len(words))]
    lines = [" ".join(draw.choices(words, weights, k=draw.randint(6, 14))) + ".\n" for _ in range(6500)]
    path = tmp_path_factory.mktemp("text") / "made-up.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def train_one(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Return a function that runs `train --json` and returns its document, the exit code and the log in it."""
    # Its checks have tests of their own and take longer than these runs.
    monkeypatch.setattr("search.commands.train_command.check_preflight", lambda *args: None)
    monkeypatch.setenv("TRAINING_DATA_SOURCE", str(made_up))

    def run(**changes: str) -> dict[str, Any]:
        words = [f"{name}={value}" for name, value in {**TINY, **changes}.items()]
        capsys.readouterr()
        code = main(["train", "--json", *words])
        printed = capsys.readouterr()
        return {**json.loads(printed.out), "code": code, "log": printed.err}

    return run


@pytest.fixture(scope="module")
def whole(run_here: Any, made_up: Path) -> dict[str, Any]:
    """A run of TINY from its start to its end, which the tests look at and go on from."""
    inputs = {"TRAINING_DATA_SOURCE": str(made_up), "GPT2_MODEL_NAME": "tiny"}
    ran = run_here("train", "--json", "STUDY=whole", "SKIP_PREFLIGHT=1", **{**TINY, **inputs})
    return {**ran.document, "code": ran.code, "log": ran.stderr}


def study_of(ran: dict[str, Any]) -> Study:
    return Study(Path(ran["path"]))


def step_rows(ran: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(study_of(ran).steps_path(0)).to_pylist()
    for row in rows:
        del row["step_time_s"]
    return rows


def config_of(ran: dict[str, Any]) -> TrialConfig:
    return TrialConfig(**{name: ran["trial"][name] for name in HYPERPARAMETERS})


def checkpoints(ran: dict[str, Any]) -> list[Path]:
    return sorted(study_of(ran).checkpoint_dir(0).iterdir())


def test_a_run_from_its_start_to_its_end(whole: dict[str, Any]) -> None:
    ran = whole
    assert (ran["code"], ran["status"], ran["study"]) == (0, "completed", "whole")
    study = study_of(ran)
    assert [row["optimizer_steps"] for row in study.metrics()] == [0, 4, 8, 12]
    assert [row["optimizer_steps"] for row in step_rows(ran)] == list(range(1, 13))
    # Of steps 4 and 8 the checkpoints were the best ones for a while.
    assert [path.name for path in checkpoints(ran)] == ["step_00000006.pt", "step_00000012.pt"]
    assert ran["trial"]["val_loss"] == study.metrics()[-1]["val_loss"]
    best = checkpoints(ran)[-1]
    assert ran["best_checkpoint"] == str(best)
    assert f"lowest validation loss {ran['trial']['val_loss']:.4f} at step 12: {best}" in ran["log"]
    assert ran["trial"]["tokens_seen"] == 12 * 32
    document = study.document()
    assert (document["kind"], document["model"], document["seed"]) == ("train", "tiny", 5)
    assert "no study is named whole yet: the variables' configuration is trained under that name" in ran["log"]
    assert document["evaluation"]["tokens"] == 256


def test_a_misspelt_study_is_no_new_run(whole: dict[str, Any], run_here: Any) -> None:
    studies, loads = str(study_of(whole).path.parent), {"TRAINING_DATA_SOURCE": "/nowhere"}
    refused = run_here("train", "STUDY=whoel", STUDIES_DIR=studies)
    assert (refused.code, refused.stdout) == (2, "")
    assert "no study is named 'whoel'. Did you mean 'whole'? To train the documented configuration" in refused.stderr
    # Its own settings make a run one of its own, and a name like no other's a new one.
    for words, said in (
        (["STUDY=whole-2", "DROPOUT=0"], "is trained under that name. Did you mean 'whole'?\n"),
        (["STUDY=mine"], "no study is named mine yet: the variables' configuration is trained under that name\n"),
    ):
        began = run_here("train", *words, STUDIES_DIR=studies, **loads)
        assert (said in began.stdout, "TRAINING_DATA_SOURCE=/nowhere" in began.stderr) == (True, True)


def test_resume_says_how_a_run_of_train_goes_on(whole: dict[str, Any], run_here: Any) -> None:
    refused = run_here("resume", STUDY="whole", STUDIES_DIR=str(study_of(whole).path.parent))
    assert refused.code == 2
    assert "This adds 500 steps: make train STUDY=whole RESUME_STEPS=500\n" in refused.stderr
    stretched = run_here("train", STUDY="whole", BUDGET_TOKENS="1M", STUDIES_DIR=str(study_of(whole).path.parent))
    assert stretched.code == 2
    assert "study whole is a run of train. RESUME_STEPS=500 goes on with it for 500 steps" in stretched.stderr


def test_going_on_from_our_checkpoint_is_as_never_having_stopped(train_one: Train) -> None:
    schedule = {"LR_SCHEDULE": "warmup_cosine", "WARMUP_STEPS": "3"}
    whole = train_one(STUDY="whole", **schedule)
    resumed = train_one(STUDY="resumed", CHECKPOINT_PATH=str(checkpoints(whole)[0]), **schedule)
    assert resumed["code"] == 0
    assert "at step 6, exactly as it was left" in resumed["log"]
    assert step_rows(resumed) == step_rows(whole)[6:]
    assert resumed["trial"]["val_loss"] == whole["trial"]["val_loss"]
    same = torch.load(checkpoints(whole)[-1], weights_only=True)["model_state_dict"]
    other = torch.load(checkpoints(resumed)[-1], weights_only=True)["model_state_dict"]
    assert all(torch.equal(same[name], other[name]) for name in same)


def test_the_checkpoint_says_what_the_variables_do_not(
    train_one: Train, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """RESUME_STEPS and the checkpoint alone: model and hyperparameters are the checkpoint's."""
    capsys.readouterr()
    words = [f"CHECKPOINT_PATH={checkpoints(whole)[0]}", "RESUME_STEPS=6", "EVAL_TOKENS=256", "EVAL_BLOCK_SIZE=32"]
    assert main(["train", "--json", *words, "DEVICE=cpu"]) == 0
    trial = json.loads(capsys.readouterr().out)["trial"]
    assert (trial["batch_size"], trial["seed"], trial["training_steps"]) == (2, 5, 12)
    assert trial["val_loss"] == whole["trial"]["val_loss"]


def test_a_run_goes_on_by_its_name(
    whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(study_of(whole).path.parent))

    def another_begins(preflight: Any, terminal: Any) -> None:
        (studies_dir() / preflight.loaded.inputs.options.study).mkdir()

    # In the same minute, and takes the name that was free.
    monkeypatch.setattr("search.commands.train_command.check_preflight", another_begins)
    capsys.readouterr()
    assert main(["train", "--json", "STUDY=whole", "RESUME_STEPS=6", "DEVICE=cpu"]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"train-whole-\d{4}-\d{4}-2", json.loads(said.out)["study"])
    assert f"resumed from {checkpoints(whole)[-1]} at step 12, exactly as it was left" in said.err
    assert "not to be compared" not in said.err
    trial = json.loads(said.out)["trial"]
    assert (trial["batch_size"], trial["seed"], trial["training_steps"]) == (2, 5, 18)
    assert main(["train", "STUDY=whol", "RESUME_STEPS=6"]) == 2
    assert "no study named 'whol' in " in (misspelt := capsys.readouterr().err)
    assert "Did you mean 'whole'?" in misspelt


def test_a_run_that_goes_on_costs_what_it_costs_itself(train_one: Train, whole: dict[str, Any], tmp_path: Path) -> None:
    """The run before took a day, which is in its own study."""
    payload = {**torch.load(checkpoints(whole)[-1], weights_only=True), "active_s": 86_400.0}
    torch.save(payload, tmp_path / "slow.pt")
    longer = train_one(STUDY="longer", CHECKPOINT_PATH=str(tmp_path / "slow.pt"), RESUME_STEPS="6")
    assert "exactly as it was left" in longer["log"]
    assert "note: RESUME_STEPS sets the run's length; TRAINING_STEPS is not read" in longer["log"]
    assert 0 < longer["trial"]["active_s"] < 3_600
    assert f", {6 * 2 * 16} tokens; study " in longer["log"]
    assert study_of(longer).metrics()[0]["active_s"] < 3_600


RATES = {"LR_SCHEDULE": "warmup_cosine", "WARMUP_STEPS": "2", "MIN_LR_FRAC": "0.1"}


def test_a_schedule_that_is_stretched_is_told_with_its_rates(train_one: Train) -> None:
    whole = train_one(STUDY="whole", **RATES)
    last = str(checkpoints(whole)[-1])
    longer = train_one(STUDY="longer", CHECKPOINT_PATH=last, RESUME_STEPS="12", **RATES)
    now = step_rows(longer)[0]["learning_rate"]
    assert now == learning_rate_at(12, config_of(longer)) > 4e-4
    assert "at step 12, with its optimizer, random numbers and data position" in longer["log"]
    assert (
        f"the rate continues at {now:.2e}; the run before ended at 1.00e-04. The schedule's horizon is now 24 "
        "steps (it was 12); RESUME_LR=hold stays at 1.00e-04."
    ) in longer["log"]
    assert "exactly" not in longer["log"]
    held = train_one(STUDY="held", CHECKPOINT_PATH=last, RESUME_STEPS="12", RESUME_LR="hold", LEARNING_RATE="")
    assert [row["learning_rate"] for row in step_rows(held)] == [learning_rate_at(12, config_of(whole))] * 12
    assert "the rate continues at 1.00e-04; the run before ended at 1.00e-04" in held["log"]
    assert "exactly" not in held["log"]


def test_a_longer_run_at_a_constant_rate_goes_on_exactly(train_one: Train, whole: dict[str, Any]) -> None:
    longer = train_one(STUDY="longer", TRAINING_STEPS="18")
    resumed = train_one(STUDY="resumed", CHECKPOINT_PATH=str(checkpoints(whole)[-1]), RESUME_STEPS="6")
    assert "at step 12, exactly as it was left" in resumed["log"]
    assert step_rows(resumed) == step_rows(longer)[12:]


def test_what_is_changed_on_resuming_is_told(train_one: Train, whole: dict[str, Any]) -> None:
    ran = train_one(STUDY="changed", CHECKPOINT_PATH=str(checkpoints(whole)[0]), BATCH_SIZE="4", LEARNING_RATE="2e-3")
    assert "changed since: batch_size 4 (was 2), learning_rate 0.002 (was 0.001)" in ran["log"]
    assert "the rate continues at 2.00e-03; the run before had come to 1.00e-03" in ran["log"]
    assert "exactly" not in ran["log"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RESUME_LR": "hold", "LEARNING_RATE": "1e-3"}, "RESUME_LR=hold keeps the checkpoint's own rate"),
        ({"RESUME_LR": "hold", "WEIGHTS_ONLY": "1"}, "RESUME_LR=hold goes on from a step and WEIGHTS_ONLY starts"),
        ({"RESUME_STEPS": "3", "WEIGHTS_ONLY": "1"}, "RESUME_STEPS goes on from a step and WEIGHTS_ONLY starts"),
        ({"RESUME_LR": "hold", "CHECKPOINT_PATH": ""}, "RESUME_LR=hold is set but CHECKPOINT_PATH is not"),
        ({"RESUME_LR": "steady"}, "RESUME_LR=steady is not known"),
    ],
)
def test_what_contradicts_itself_is_refused(
    train_one: Train, whole: dict[str, Any], changes: dict[str, str], message: str
) -> None:
    own = {"CHECKPOINT_PATH": str(checkpoints(whole)[0]), "LEARNING_RATE": ""}
    assert message in train_one_refused(train_one, **{**own, **changes})["error"]


def test_the_trained_model_is_saved_as_a_folder(train_one: Train, tmp_path: Path) -> None:
    out = tmp_path / "models" / "mine"
    ran = train_one(STUDY="saved", SAVE_MODEL=str(out))
    assert ran["model"] == str(out)
    assert "(fp32); read back, its val loss is" in ran["log"]
    assert "the run's to the last digit" in ran["log"]
    plain = AutoModelForCausalLM.from_pretrained(out)
    weights = torch.load(checkpoints(ran)[-1], weights_only=True)["model_state_dict"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())
    card = (out / "README.md").read_text()
    assert f"Validation loss (nats/token): start {ran['start_val_loss']:.4f} → this model" in card
    assert "| learning_rate | 0.001 |" in card
    # It is a model to go on from, with the tokenizer it was trained with, and a checkpoint.
    again = train_one(STUDY="again", GPT2_MODEL_NAME=str(out))
    assert again["start_val_loss"] == ran["trial"]["val_loss"]
    from_folder = train_one(STUDY="folder", CHECKPOINT_PATH=str(out), WEIGHTS_ONLY="1")
    assert (from_folder["start_val_loss"], study_of(from_folder).document()["model"]) == (
        ran["trial"]["val_loss"],
        str(out),
    )
    refused = train_one_refused(train_one, SAVE_MODEL=str(out))
    assert f"{out} exists and is not this model. Remove it, or name another folder." in refused["error"]


def test_a_model_that_finds_no_room_is_a_line_and_the_run_is_told_as_ever(
    train_one: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*values: Any, **named: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    ran = train_one(STUDY="unsaved", SAVE_MODEL=str(tmp_path / "m"))
    assert (ran["code"], ran["model"], ran["status"]) == (2, None, "completed")
    why = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert f"error: {tmp_path}/m cannot be written: {why}. Make room, or name another folder." in ran["log"]
    assert "make model STUDY=unsaved" in ran["log"]
    assert not list(tmp_path.glob("*m*"))


def test_a_run_that_made_the_model_worse_says_so_and_gives_its_best_evaluation(
    train_one: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "own.txt", tmp_path / "m"
    text.write_text(docstrings()[:100_000], encoding="utf-8")  # which the shipped model knows
    rising = {"TRAINING_DATA_SOURCE": str(text), "LEARNING_RATE": "2e-2", "LR_SCHEDULE": "warmup_constant"}
    ran = train_one(STUDY="worse", SAVE_MODEL=str(out), WARMUP_STEPS="12", MIN_LR_FRAC="0", **rising)
    start, best, _, last = study_of(ran).metrics()
    assert start["val_loss"] < best["val_loss"] < last["val_loss"]
    assert (ran["start_val_loss"], ran["worse_than_start"]) == (start["val_loss"], True)
    assert study_of(ran).document()["start"]["val_loss"] == start["val_loss"]
    assert f"completed: start {start['val_loss']:.4f} → end {last['val_loss']:.4f}" in ran["log"]
    assert "the run makes the model worse: " in ran["log"]
    assert set(ran["samples"]["samples"]) == {"start", "best"}
    assert f"  start: {' '.join(ran['samples']['samples']['start']['text'].split())}" in ran["log"]

    weights = torch.load(checkpoints(ran)[0], weights_only=True)["model_state_dict"]
    assert checkpoints(ran)[0].name == "step_00000004.pt"
    own = f"TRAINING_DATA_SOURCE={text}"
    assert main(["model", "--json", "STUDY=worse", own, f"OUT={tmp_path / 'again'}"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["optimizer_steps"], made["val_loss"]) == (4, best["val_loss"])
    for folder in (out, tmp_path / "again"):
        saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.items())
        assert "step 4 of 12 (its lowest validation loss)" in (folder / "README.md").read_text()
    assert "model, step 4 of 12 (its lowest validation loss) written to" in ran["log"]

    unkept = {"SAVE_MODEL": str(tmp_path / "last"), "ENABLE_CHECKPOINTS": "False"}
    ran = train_one(STUDY="unkept", WARMUP_STEPS="12", MIN_LR_FRAC="0", **rising, **unkept)
    assert "without checkpoints (ENABLE_CHECKPOINTS=False) the last step's model" in ran["log"]
    assert f"this model {last['val_loss']:.4f}" in (tmp_path / "last" / "README.md").read_text()


def test_lora_goes_on_and_its_model_comes_out(train_one: Train, capsys: pytest.CaptureFixture[str]) -> None:
    first = train_one(STUDY="first", USE_LORA="True", LORA_RANK="4")
    longer = train_one(STUDY="longer", USE_LORA="", CHECKPOINT_PATH=str(checkpoints(first)[-1]), RESUME_STEPS="4")
    assert (longer["trial"]["lora_rank"], longer["start_val_loss"]) == (4, first["trial"]["val_loss"])
    assert longer["samples"]["samples"]["start"]["text"] == first["samples"]["samples"]["best"]["text"]
    assert main(["model", "--json", "STUDY=longer", "MERGE=1"]) == 0
    assert json.loads(capsys.readouterr().out)["val_loss"] == pytest.approx(longer["trial"]["val_loss"], abs=1e-5)


def test_lora_settings_without_lora_are_refused(train_one: Train) -> None:
    refused = train_one_refused(train_one, LORA_RANK="8", LORA_ALPHA="16")
    assert refused["error"] == (
        "LORA_RANK, LORA_ALPHA: without USE_LORA no adapters are trained. Set USE_LORA=True or False."
    )
    # As the owner's own settings have it.
    assert train_one(STUDY="owners", LORA_RANK="8", USE_LORA="False", TRAINING_STEPS="1")["code"] == 0


def test_no_model_is_saved_of_a_run_that_did_not_complete(train_one: Train, tmp_path: Path) -> None:
    ran = train_one(STUDY="wild", LEARNING_RATE="100", WEIGHT_DECAY="10", SAVE_MODEL=str(tmp_path / "m"))
    assert (ran["model"], (tmp_path / "m").exists()) == (None, False)
    assert "the run is unstable, not completed" in ran["log"]


def test_a_checkpoint_at_the_runs_end_cannot_go_on_without_more_steps(train_one: Train, whole: dict[str, Any]) -> None:
    refused = train_one_refused(train_one, CHECKPOINT_PATH=str(checkpoints(whole)[-1]))
    assert "is at step 12 and TRAINING_STEPS=12 is no further. Set RESUME_STEPS" in refused["error"]


def train_one_refused(train_one: Train, **changes: str) -> dict[str, Any]:
    refused = train_one(STUDY="refused", **changes)
    assert refused["code"] == 2
    assert not (Path(os.environ["STUDIES_DIR"]) / "refused").exists()
    return refused


def test_weights_only_starts_at_step_0_with_a_fresh_optimizer(train_one: Train, whole: dict[str, Any]) -> None:
    fresh = train_one(STUDY="fresh", CHECKPOINT_PATH=str(checkpoints(whole)[-1]), WEIGHTS_ONLY="True")
    assert [row["optimizer_steps"] for row in step_rows(fresh)] == list(range(1, 13))
    assert study_of(fresh).metrics()[0]["val_loss"] == whole["trial"]["val_loss"]


@pytest.fixture
def owners_file(whole: dict[str, Any], tmp_path: Path) -> tuple[Path, float]:
    """A .pt as the owner's scripts write it, of known weights, and its loss."""
    ours = torch.load(checkpoints(whole)[-1], weights_only=True)["model_state_dict"]
    path = tmp_path / "checkpoint_gpt2_data_step001500_11252025_031000.pt"
    payload = {
        "step": 1500,
        "model_state_dict": {f"model.{name}": tensor for name, tensor in ours.items()},
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "hyperparameters": {"batch_size": 32, "block_size": 128, "learning_rate": 1e-5, "lr_schedule": "constant"},
        "vocab_size": 2048,
        "block_size": 128,
        "batch_size": 32,
    }
    torch.save(payload, path)
    return path, whole["trial"]["val_loss"]


def test_an_owners_file_goes_on_with_its_weights_at_its_step(train_one: Train, owners_file: tuple[Path, float]) -> None:
    path, loss = owners_file
    ran = train_one(STUDY="resumed", CHECKPOINT_PATH=str(path), RESUME_STEPS="4")
    assert ran["code"] == 0
    assert "at step 1500, with its weights; the optimizer starts from zero" in ran["log"]
    assert [row["optimizer_steps"] for row in step_rows(ran)] == [1501, 1502, 1503, 1504]
    assert ran["trial"]["training_steps"] == 1504
    assert study_of(ran).metrics()[0]["val_loss"] == loss
    assert [saved.name for saved in checkpoints(ran)] == ["step_00001504.pt"]


def test_adapters_on_an_owners_file_are_saved_merged_alone(
    train_one: Train, owners_file: tuple[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"CHECKPOINT_PATH": str(owners_file[0]), "RESUME_STEPS": "4", "USE_LORA": "True"}
    refused = train_one_refused(train_one, SAVE_MODEL=str(tmp_path / "m"), **own)
    assert f"weights are those of {owners_file[0]}, which is no model folder" in refused["error"]
    ran = train_one(STUDY="adapted", SAVE_MODEL=str(tmp_path / "m"), MERGE="1", **own)
    assert "(fp32); read back, its val loss is" in ran["log"]
    assert ran["samples"]["samples"]["start"]["text"]
    # From the files alone, which name each other.
    assert main(["model", "--json", "STUDY=adapted", f"OUT={tmp_path / 'again'}", "MERGE=1"]) == 0
    assert json.loads(capsys.readouterr().out)["val_loss"] == pytest.approx(ran["trial"]["val_loss"], abs=5e-5)


def test_an_owners_file_that_does_not_fit_names_the_tensor(train_one: Train, owners_file: tuple[Path, float]) -> None:
    path, _ = owners_file
    payload = torch.load(path, weights_only=True)
    payload["model_state_dict"]["model.transformer.wpe.weight"] = torch.zeros(512, 128)
    torch.save(payload, path)
    refused = train_one_refused(train_one, CHECKPOINT_PATH=str(path), RESUME_STEPS="4")
    assert "tensor 'transformer.wpe.weight' is (512, 128) in the checkpoint and (1024, 128)" in refused["error"]


def interrupting(number: int, after_steps: int) -> Callable[..., Iterator[Any]]:
    """Return train(), with a signal sent to this process after that many steps."""

    def rows(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for row in train(*args, **kwargs):
            if isinstance(row, StepRow) and row.optimizer_steps == after_steps:
                os.kill(os.getpid(), number)
            yield row

    return rows


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_where_it_is_and_goes_on_exactly(
    number: int, code: int, train_one: Train, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trainable.loop.train", interrupting(number, after_steps=7))
        cut = train_one(STUDY="cut", SAVE_MODEL="my model")
    assert (cut["code"], cut["status"]) == (code, "interrupted")
    assert checkpoints(cut)[-1].name == "step_00000007.pt"
    assert cut["trial"]["status"] == "interrupted"
    assert (cut["trial"]["optimizer_steps"], cut["trial"]["tokens_seen"]) == (7, 7 * 2 * 16)
    assert cut["trial"]["ended_at"] is not None
    assert [row["optimizer_steps"] for row in step_rows(cut)] == list(range(1, 8))
    # kill -9 leaves the same run, unmarked.
    write_table(study_of(cut).trials_path, [{**study_of(cut).trials()[0], "status": "running"}], TRIALS)
    goes_on = next_steps(study_of(cut))[0].command
    assert goes_on == cut["next"][0]["command"]
    assert f" EVAL_INTERVAL=4 CHECKPOINT_INTERVAL=6 'SAVE_MODEL={Path.cwd()}/my model'" in goes_on
    # What is printed next names the text and the evaluation, which were typed for that command alone.
    monkeypatch.delenv("TRAINING_DATA_SOURCE")
    printed = dict(word.split("=", 1) for word in shlex.split(cut["next"][0]["command"]) if "=" in word)
    assert printed.keys() >= {"CHECKPOINT_PATH", "TRAINING_DATA_SOURCE", "EVAL_BLOCK_SIZE", "EVAL_TOKENS"}
    resumed = train_one(STUDY="resumed", **{**printed, "SAVE_MODEL": ""})
    assert step_rows(resumed) == step_rows(whole)[7:]
    assert resumed["trial"]["val_loss"] == whole["trial"]["val_loss"]


def test_a_run_is_held_while_it_trains(train_one: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*values: Any, **named: Any) -> Iterator[Any]:
        with pytest.raises(UserError, match="study held is held by process"), hold(Study(studies_dir() / "held")):
            pass
        yield from train(*values, **named)

    monkeypatch.setattr("trainable.loop.train", asked)
    assert train_one(STUDY="held")["status"] == "completed"


def test_a_signal_after_the_last_step_still_gets_the_last_evaluation(
    train_one: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.loop.train", interrupting(signal.SIGINT, after_steps=12))
    ran = train_one()
    assert (ran["code"], ran["status"]) == (0, "completed")
    assert ran["trial"]["optimizer_steps"] == 12


def test_running_out_of_memory_says_which_variables_to_change(
    train_one: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: Any, **kwargs: Any) -> Iterator[Any]:
        rows = train(*args, **kwargs)
        yield next(rows)
        yield next(rows)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trainable.loop.train", no_room)
    ran = train_one(STUDY="large")
    assert ran["code"] == 2
    assert ran["error"] == (
        "BATCH_SIZE=2 x BLOCK_SIZE=16 does not fit in cpu memory. "
        "Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS by the same factor."
    )
    [row] = Study(Path(os.environ["STUDIES_DIR"]) / "large").trials()
    assert (row["status"], row["optimizer_steps"]) == ("out_of_memory", 1)


def test_a_model_that_does_not_even_fit_is_told_in_the_same_line(
    train_one: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def no_room(spec: Any, config: Any) -> Any:
        devices.append(spec.device)
        if len(devices) == 2:  # the first shows on the CPU whether all fits together
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr("trainable.run.start_run", no_room)
    ran = train_one_refused(train_one)
    assert ran["error"].startswith("BATCH_SIZE=2 x BLOCK_SIZE=16 does not fit in cpu memory. Lower BATCH_SIZE")
    assert devices == ["cpu", "cpu"]


def test_a_disk_that_fills_up_is_told_with_the_checkpoint_to_go_on_from(
    train_one: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_later(state: Any, path: Path, **names: Any) -> None:
        if state.optimizer_steps > 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_checkpoint(state, path, **names)

    monkeypatch.setattr("trainable.checkpoint.checkpoint.save_checkpoint", full_later)
    refused = train_one(STUDY="full")
    assert (
        "no space left on the device. Make room; what was measured so far is kept. Then go on with: make train"
        in (refused["error"])
    )
    assert "checkpoints/0/step_00000006.pt" in refused["error"]


def test_a_fault_of_ours_does_not_leave_the_run_running(train_one: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield next(train(*args, **kwargs))
        raise ZeroDivisionError

    monkeypatch.setattr("trainable.loop.train", broken)
    with pytest.raises(ZeroDivisionError):
        train_one(STUDY="broken")
    [row] = Study(Path(os.environ["STUDIES_DIR"]) / "broken").trials()
    assert row["status"] == "failed"


def test_an_unstable_run_ends_with_its_verdict_and_keeps_no_broken_weights(train_one: Train) -> None:
    ran = train_one(STUDY="wild", LEARNING_RATE="100", WEIGHT_DECAY="10")
    assert (ran["code"], ran["status"]) == (1, "unstable")
    assert ran["trial"]["verdict"].startswith("nonfinite at step ")
    assert ": stopped, nonfinite: loss" in ran["log"]
    assert not study_of(ran).checkpoint_dir(0).exists()


def test_checkpoints_can_be_switched_off(train_one: Train) -> None:
    ran = train_one(ENABLE_CHECKPOINTS="False")
    assert ran["code"] == 0
    assert not study_of(ran).checkpoint_dir(0).exists()


def test_the_last_checkpoints_are_kept(train_one: Train) -> None:
    ran = train_one(CHECKPOINT_INTERVAL="2")
    names = [path.name for path in checkpoints(ran)]
    assert names == ["step_00000008.pt", "step_00000010.pt", "step_00000012.pt"]


def test_use_lr_warmup_is_warm_up_and_cosine_over_a_tenth(train_one: Train) -> None:
    ran = train_one(USE_LR_WARMUP="True", TRAINING_STEPS="20")
    trial = ran["trial"]
    assert (trial["lr_schedule"], trial["warmup_steps"]) == ("warmup_cosine", 2)
    rates = [row["learning_rate"] for row in step_rows(ran)]
    assert rates[:3] == pytest.approx([1e-4, 5.5e-4, 1e-3])
    assert rates[-1] < 1.2e-4


def test_what_the_run_does_not_read_is_told(train_one: Train) -> None:
    """Of a study's winner USE_LORA=False is set too: with STUDY= a typed rank was passed over without a word."""
    ran = train_one(WARMUP_STEPS="4", MIN_LR_FRAC="0.2", TRAINING_STEPS="4", LORA_RANK="2", USE_LORA="False")
    assert "note: LR_SCHEDULE=constant does not read WARMUP_STEPS and MIN_LR_FRAC" in ran["log"]
    assert "note: USE_LORA=False does not read LORA_RANK" in ran["log"]


STEP_LINE = re.compile(r"step (\d+)/(\d+) \((\d+\.\d)%\) \| (\d+\.\d\d) steps/sec \| ETA: (\d+\.\d)m")
EVAL_LINE = re.compile(
    r"step (\d+)/(\d+) \((\d+\.\d)%\): train loss (\d+\.\d{4}), val loss (\d+\.\d{4}) \| "
    r"LR: (\d\.\d\de-\d\d) \| (\d+\.\d)s \((\d+\.\d\d) steps/sec\)"
)


def step_row(number: int, step_time_s: float = 0.5) -> StepRow:
    return StepRow(
        optimizer_steps=number,
        tokens_seen=number * 10,
        train_loss=6.5,
        grad_norm=1.25,
        learning_rate=1e-5,
        step_time_s=step_time_s,
    )


def metrics_row(number: int) -> MetricsRow:
    return evaluation(number, 9.268, train_loss=9.227, learning_rate=2e-6)


def test_the_log_has_a_line_every_25_steps_with_loss_and_gradient_norm() -> None:
    lines: list[str] = []
    log = TrainLog(5000, say=lines.append)
    log.tell(metrics_row(0))
    for number in range(1, 101):
        log.tell(step_row(number))
    log.tell(metrics_row(100))
    first = EVAL_LINE.fullmatch(lines[0])
    assert first is not None
    assert first.groups()[:6] == ("0", "5000", "0.0", "9.2270", "9.2680", "2.00e-06")
    assert first[8] == "0.00"
    progress = [match for line in lines if (match := STEP_LINE.match(line))]
    assert [match[1] for match in progress] == ["25", "50", "75", "100"]
    assert progress[0].groups() == ("25", "5000", "0.5", "2.00", f"{4975 * 0.5 / 60:.1f}")
    assert lines[-2].endswith("m | loss 6.5000 | grad norm 1.2500")
    assert EVAL_LINE.fullmatch(lines[-1])


def test_the_logged_speed_is_of_the_last_steps_and_forgets_a_stall() -> None:
    lines: list[str] = []
    log = TrainLog(5000, say=lines.append)
    log.tell(step_row(1, step_time_s=10_000.0))
    for number in range(2, 202):
        log.tell(step_row(number))
    assert "| 2.00 steps/sec |" in lines[-1]


def test_findings_and_verdicts_are_told_with_their_step() -> None:
    lines: list[str] = []
    log = TrainLog(5000, say=lines.append)
    log.tell(Finding("spike", 300, "flag", "loss 9.1 above 8.0"))
    log.tell(Verdict(reason="nonfinite", step=301, evidence="loss nan"))
    assert lines == ["step 300: spike: loss 9.1 above 8.0", "step 301: stopped, nonfinite: loss nan"]


def test_the_rate_that_is_logged_is_the_schedules(train_one: Train) -> None:
    ran = train_one(LR_SCHEDULE="linear", WARMUP_STEPS="4")
    config = config_of(ran)
    for row in study_of(ran).metrics():
        assert row["learning_rate"] == learning_rate_at(row["optimizer_steps"], config)
        assert f"LR: {row['learning_rate']:.2e}" in ran["log"]
