"""`make model` on a real study: the winner as a folder, its loss the report's, and what to do without a checkpoint."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from results.study.folder import Study
from search.cluster.study_storage import model_checkpoint
from search.options import parse_options, read_options
from search.setup.reopen import with_inputs_of
from search.setup.train_plan import with_winner_of
from search.terminal.next_steps import last_checkpoint, next_steps
from trainable.errors import UserError


@pytest.fixture(scope="module")
def study(two_rates: Study, studies: Path) -> Study:
    return Study(Path(shutil.copytree(two_rates.path, studies / "two")))


def test_the_winner_comes_out_and_is_the_trials(run_here: Any, study: Study, tmp_path: Path) -> None:
    ran = run_here("model", "--json", "STUDY=two", f"OUT={tmp_path / 'out'}")
    assert ran.code == 0, ran.stderr
    document, trial = ran.document, study.trials()[1]
    assert (document["trial_id"], document["dtype"], document["model"]) == (1, "fp32", str(tmp_path / "out"))
    assert document["val_loss"] == document["trial_val_loss"] == trial["val_loss"]
    assert "read back, its val loss is" in ran.stderr
    assert "the run's to the last digit" in ran.stderr
    [file] = study.checkpoint_dir(1).iterdir()
    weights = torch.load(file, weights_only=True)["model_state_dict"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights.items())
    card = (tmp_path / "out" / "README.md").read_text()
    # Of a folder in bf16 these are not the folder's own losses.
    assert ", with the run's fp32 weights, without dropout." in card
    baseline, start = study.trials()[0]["val_loss"], study.metrics()[0]["val_loss"]
    assert f"start {start:.4f} → baseline {baseline:.4f} → this model {trial['val_loss']:.4f}" in card
    assert study.document()["corpus"]["fingerprint"] in card
    # Again is the same again; another trial's folder is not touched.
    assert run_here("model", "STUDY=two", f"OUT={tmp_path / 'out'}", "DTYPE=bf16").code == 0
    record = json.loads((tmp_path / "out" / "gpt2_search.json").read_text())
    assert (record["dtype"], record["trial_id"]) == ("bf16", 1)
    (tmp_path / "out" / "gpt2_search.json").write_text(json.dumps({**record, "trial_id": 0}))
    refused = run_here("model", "STUDY=two", f"OUT={tmp_path / 'out'}")
    assert (refused.code, "exists and is not this model" in refused.stderr) == (2, True)


def test_a_model_that_training_made_worse_is_written_with_a_warning(
    run_here: Any, study: Study, tmp_path: Path
) -> None:
    copy = Study(Path(shutil.copytree(study.path, tmp_path / "two")))
    copy.study_json.write_text(json.dumps({**copy.document(), "start": {"val_loss": 1.5, "train_loss": None}}))
    for studies, is_warned in ((tmp_path, True), (study.path.parent, False)):
        ran = run_here("model", "STUDY=two", f"OUT={tmp_path / 'out'}", f"STUDIES_DIR={studies}")
        said = "trial 1 makes the model worse: its val loss starts at 1.5000"
        assert (ran.code, said in ran.output) == (0, is_warned)
        shutil.rmtree(tmp_path / "out")


def test_a_study_is_meant_before_a_folder_of_its_name(run_here: Any, study: Study, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    ran = run_here("diagnose", "TARGET=two/1", cwd=tmp_path)
    assert (ran.code, "diagnosis-1.png" in ran.output) == (0, True), ran.output


def test_the_checkpoint_is_found_where_the_study_ran_without_storage(
    run_here: Any, study: Study, tmp_path: Path
) -> None:
    ran = run_here("model", "STUDY=latest", f"STORAGE={tmp_path}", f"OUT={tmp_path / 'out'}")
    assert (ran.code, "the run's to the last digit" in ran.output) == (0, True), ran.output


def test_diagnose_finds_nothing_wrong_with_the_folder(run_here: Any, study: Study, tmp_path: Path) -> None:
    assert run_here("model", "STUDY=two").code == 0
    ran = run_here("diagnose", "--json", f"TARGET={study.path / 'model-1'}", cwd=tmp_path)
    assert ran.code == 0, ran.stderr
    assert [finding for finding in ran.document["findings"] if finding["severity"] == "fault"] == []


def test_train_goes_on_from_the_winners_checkpoint(
    study: Study, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search from a checkpoint sets WEIGHTS_ONLY, which starts at step 0, and each one the rate that hold keeps."""
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    copy = Study(Path(shutil.copytree(study.path, tmp_path / "two")))
    copy.study_json.write_text(json.dumps({**copy.document(), "checkpoint_path": "/somewhere/weights.pt"}))
    [checkpoint] = copy.checkpoint_dir(1).iterdir()
    for words in (["RESUME_STEPS=4"], ["RESUME_STEPS=4", "RESUME_LR=hold"]):
        options = with_winner_of(read_options(["STUDY=two", *words]))
        assert (options.checkpoint_path, options.weights_only, options.hyperparameters) == (checkpoint, False, {})
        assert options.texts["GPT2_MODEL_NAME"] == str(narrow)
    stored = tmp_path / "store" / "two" / "checkpoints" / "1"
    copy.study_json.write_text(json.dumps({**copy.document(), "storage": str(tmp_path / "store")}))
    shutil.move(copy.checkpoint_dir(1), stored)
    assert with_winner_of(read_options(["STUDY=two", *words])).checkpoint_path == stored / checkpoint.name
    shutil.move(stored, copy.checkpoint_dir(1))
    later = copy.checkpoint_dir(1) / "step_100000000.pt"
    later.touch()
    assert last_checkpoint(copy, 1, str(tmp_path / "store")) == later
    later.unlink()
    for words, message in (
        (["RESUME_STEPS=4", "BUDGET_TOKENS=1M"], "BUDGET_TOKENS and RESUME_STEPS set the length of the same run"),
        (["RESUME_LR=hold"], "STUDY=two: no checkpoint of its winner was kept to go on from. Unset RESUME_STEPS and"),
    ):
        with pytest.raises(UserError, match=message):
            with_winner_of(read_options(["STUDY=two", *words]))
        shutil.rmtree(copy.checkpoint_dir(1), ignore_errors=True)
    far = str(tmp_path / ("n" * 300))  # it cannot be reached, which is not to be empty
    copy.study_json.write_text(json.dumps({**copy.document(), "storage": far}))
    assert "make model STUDY=two" in [step.command for step in next_steps(copy)]
    with pytest.raises(UserError, match=r"which cannot be reached \(File name too long\)\. Set STORAGE to where they"):
        with_winner_of(read_options(["STUDY=two", "RESUME_STEPS=4"]))
    with pytest.raises(UserError, match=r"cannot be read: File name too long\. Set STORAGE to where they are\."):
        with_winner_of(read_options(["STUDY=two", "RESUME_STEPS=4", f"STORAGE={far}"]))
    with pytest.raises(UserError, match=r"cannot be read: File name too long\. Set STORAGE to where they are\."):
        model_checkpoint(copy, far, copy.trials()[1])


def test_without_a_checkpoint_it_says_what_trains_the_model_again(
    run_here: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKE_CALLED_FROM", str(study.path.parent))  # make -C has another folder than the shell
    trial, moved = study.trials()[1], tmp_path / "moved"
    shutil.move(study.checkpoint_dir(1), moved)
    out = tmp_path / "trained again"
    steps = [step.command for step in next_steps(study)]
    monkeypatch.delenv("MAKE_CALLED_FROM")
    assert f"make train STUDY=two SAVE_MODEL={study.path}/model-1" in steps
    assert not any("make model" in step for step in steps)
    refused = run_here("model", "STUDY=two", f"OUT={out}")
    assert refused.code == 2
    assert "trial 1 of study two: no checkpoint of its step 48 was kept. Train it again: " in refused.stderr
    command = refused.stderr.partition("Train it again: ")[2].strip()
    assert command == f"make train STUDY=two {shlex.quote(f'SAVE_MODEL={out}')}"
    done = run_here(*shlex.split(command)[1:], "SKIP_PREFLIGHT=1")
    assert done.code == 0, done.stderr
    shutil.move(moved, study.checkpoint_dir(1))
    assert next_steps(study)[1].command == "make model STUDY=two"
    assert run_here("model", "STUDY=two", f"OUT={tmp_path / 'kept'}").code == 0
    mine, again = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tmp_path / "kept", out))
    assert all(torch.equal(mine[name], tensor) for name, tensor in again.items())
    assert trial["val_loss"] is not None


def test_a_study_whose_text_has_changed_has_no_model(
    run_here: Any, study: Study, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() + "One more sentence.\n")
    ran = run_here("model", "STUDY=two", f"OUT={tmp_path / 'out'}", TRAINING_DATA_SOURCE=str(other))
    assert ran.code == 2
    assert "the text or the tokenizer has changed since" in ran.stderr
    assert "Unset TRAINING_DATA_SOURCE, restore what has changed, or start a new search." in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_text_that_was_moved_is_asked_for_by_its_variable(
    study: Study, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {**study.document(), "data_source": "/nowhere/text.txt"}
    with pytest.raises(
        UserError, match=r"^the study was run on TRAINING_DATA_SOURCE=/nowhere/text.txt, which is gone\."
    ):
        with_inputs_of(document, parse_options({}))
    options = parse_options({"TRAINING_DATA_SOURCE": str(text_file)})
    assert with_inputs_of(document, options).training_data_source == text_file
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    copy = Study(Path(shutil.copytree(study.path, tmp_path / "two")))
    copy.study_json.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"^the study was run on TRAINING_DATA_SOURCE=/nowhere"):
        with_winner_of(parse_options({"STUDY": "two"}))
    there = parse_options({"STUDY": "two", "TRAINING_DATA_SOURCE": str(text_file)})
    assert with_winner_of(there).training_data_source == text_file


@pytest.fixture(scope="module")
def adapted(run_here: Any, studies: Path) -> Study:
    """A study whose winner, its only run, has LoRA adapters on the shipped model."""
    words = ["SPACE=smoke", "GPT2_MODEL_NAME=tiny", "USE_LORA=True", "LORA_RANK=4", "LEARNING_RATE=3e-2"]
    ran = run_here("baseline", *words, "BUDGET_TOKENS=4096", "STUDY=adapted", "SKIP_PREFLIGHT=1")
    assert ran.code == 0, ran.output
    assert "start " in ran.output
    assert "samples, after " in ran.output
    return Study(studies / "adapted")


def test_adapters_come_out_alone_or_merged(run_here: Any, adapted: Study, tmp_path: Path) -> None:
    from peft import PeftModel

    alone, merged = tmp_path / "alone", tmp_path / "merged"
    ran = run_here("model", "--json", "STUDY=adapted", "GPT2_MODEL_NAME=tiny", f"OUT={alone}")
    assert (ran.code, ran.document["dtype"]) == (0, None), ran.output
    assert ran.document["val_loss"] == ran.document["trial_val_loss"]
    ran = run_here("model", "--json", "STUDY=adapted", "GPT2_MODEL_NAME=tiny", f"OUT={merged}", "MERGE=1")
    assert (ran.code, ran.document["dtype"]) == (0, "fp32"), ran.output
    assert ran.document["val_loss"] == pytest.approx(ran.document["trial_val_loss"], abs=5e-5)

    folder = json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"]
    ids = torch.arange(3, 99)[None]
    plain, whole = (AutoModelForCausalLM.from_pretrained(one).eval() for one in (folder, merged))
    with torch.no_grad():
        before = plain(ids).logits
        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            theirs = PeftModel.from_pretrained(plain, str(alone)).eval()
        adapted_logits = theirs(ids).logits
        torch.testing.assert_close(whole(ids).logits, adapted_logits, atol=1e-3, rtol=1e-4)
    assert (adapted_logits - before).abs().max() > 0.1
    assert (
        (alone / "adapter_model.safetensors").stat().st_size < 100_000 < (merged / "model.safetensors").stat().st_size
    )
