"""Samples of a study with real, untrained models: who continues the prompt, when again, and what stops nothing."""

import errno
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from results.samples import Sample, Samples, load_samples
from results.study.folder import Study, create_study
from results.study.tables import TRIALS, write_table
from search.cluster.study_storage import checkpoint_root
from search.commands.run_command import conclude
from search.options import read_options
from search.setup.finish import finish_study, sample_study
from search.setup.plan import Plan, make_plan
from search.terminal.console import Preparing, Terminal
from trainable import sampling
from trainable.checkpoint.checkpoint import checkpoint_payload
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.errors import MachineError, UserError
from trainable.run import load_run_model, start_run

SAID = "continuing the sample prompt ..."


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A study with checkpoints of step 0 for trials 0, 1 and 2, each of its own random weights, and its variables."""

    study: Study
    plan: Plan
    words: list[str]

    def sample(self, *words: str, loaded: bool = True) -> Samples | None:
        options = read_options([*self.words, *words])
        sample_study(self.study, options, Terminal(as_json=False), self.plan.loaded if loaded else None)
        return load_samples(self.study)

    def write_trials(self, *losses: float | None) -> None:
        """Have the trials ended with these losses; None is of one that did not complete."""
        rows = []
        for trial_id, loss in enumerate(losses):
            row = dict.fromkeys(TRIALS.names) | asdict(replace(self.plan.baseline, seed=trial_id))
            row |= {"trial_id": trial_id, "purpose": "search", "is_baseline": trial_id == 0, "optimizer_steps": 0}
            row |= {"status": "failed" if loss is None else "completed", "val_loss": loss, "best_val_loss": loss}
            rows.append(row | {"tokens_seen": 0, "active_s": 0.0})
        write_table(self.study.trials_path, rows, TRIALS)


@pytest.fixture
def make_planted(text_file: Path) -> Callable[..., Planted]:
    def make(*more: str) -> Planted:
        words = [f"TRAINING_DATA_SOURCE={text_file}", "GPT2_MODEL_NAME=tiny-scratch", "DEVICE=cpu", *more]
        options = read_options(["SPACE=smoke", "STUDY=s", "SEED=0", *words])
        plan = make_plan(options, kind="search", progress=Preparing(Terminal(as_json=True).console))
        planted = Planted(study=create_study("s", plan.document), plan=plan, words=words)
        spec = plan.loaded.spec
        for trial_id in range(3):
            state = start_run(spec, replace(plan.baseline, seed=trial_id))
            store = CheckpointStore(root=checkpoint_root(planted.study, options.storage), trial_id=trial_id)
            facts = {"model_name": spec.model_name, "corpus_fingerprint": spec.corpus.fingerprint}
            store.write(checkpoint_payload(state, **facts))
        planted.write_trials(5.0, 4.0)
        return planted

    return make


@pytest.fixture
def planted(make_planted: Callable[..., Planted]) -> Planted:
    return make_planted()


def continuation(planted: Planted, seed: int, prompt: str) -> str:
    model, _ = load_run_model(planted.plan.loaded.spec, replace(planted.plan.baseline, seed=seed), None)
    return sampling.sample(model, planted.plan.loaded.tokenizer, prompt, seed=0)


def test_start_baseline_and_winner_continue_the_first_held_out_words(planted: Planted, capsys: Any) -> None:
    samples = planted.sample()
    assert samples is not None
    loaded = planted.plan.loaded
    assert samples.prompt == sampling.default_prompt(loaded.tokenizer, loaded.spec.corpus.val) != ""
    assert (samples.seed, samples.tokens) == (0, 40)
    # Trial 0 has the weights that a study of seed 0 starts from.
    assert samples.start == Sample(text=continuation(planted, 0, samples.prompt))
    assert samples.baseline == Sample(text=samples.start.text, trial_id=0)
    assert samples.best == Sample(text=continuation(planted, 1, samples.prompt), trial_id=1)
    assert samples.best.text != samples.start.text
    assert capsys.readouterr().out.count(SAID) == 1


def test_it_is_done_again_for_another_prompt_or_winner_alone(planted: Planted, capsys: Any) -> None:
    first = planted.sample()
    capsys.readouterr()
    assert planted.sample(loaded=False) == first
    assert capsys.readouterr().out == ""
    named = planted.sample("SAMPLE_PROMPT=my own words")
    assert named is not None
    assert named.prompt == "my own words"
    assert SAID in capsys.readouterr().out
    # A later command that names no prompt keeps the one that was named.
    assert planted.sample(loaded=False) == named
    assert capsys.readouterr().out == ""
    planted.write_trials(5.0, 4.0, 3.0)
    later = planted.sample(loaded=False)
    assert later == replace(named, best=Sample(text=continuation(planted, 2, "my own words"), trial_id=2))
    assert SAID in capsys.readouterr().out


def test_the_prompt_of_a_search_that_was_killed_before_its_samples_is_kept(
    make_planted: Callable[..., Planted],
) -> None:
    planted = make_planted("SAMPLE_PROMPT=my own words")
    samples = replace(planted, words=planted.words[:-1]).sample()
    assert samples is not None
    assert samples.prompt == "my own words"


def test_a_baseline_that_wins_is_sampled_once_and_one_that_failed_says_why(planted: Planted) -> None:
    planted.write_trials(4.0, 5.0)
    samples = planted.sample()
    assert samples is not None
    assert samples.best == samples.baseline == Sample(text=samples.start.text, trial_id=0)
    planted.write_trials(None, 5.0)
    samples = planted.sample()
    assert samples is not None
    assert samples.baseline == Sample(why="the baseline has not completed")
    assert samples.trial_ids == (None, 1)


def test_without_a_winner_there_is_nothing_to_sample(planted: Planted, capsys: Any) -> None:
    planted.write_trials(None)
    assert planted.sample() is None
    assert capsys.readouterr().out == ""


def test_a_checkpoint_that_is_gone_or_damaged_is_said_in_its_place(planted: Planted) -> None:
    shutil.rmtree(planted.study.checkpoint_dir(0))
    [file] = planted.study.checkpoint_dir(1).iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    samples = planted.sample()
    assert samples is not None
    assert samples.start.text
    gone = "trial 0 of study s: no checkpoint of its step 0 was kept."
    assert samples.baseline == Sample(why=gone, trial_id=0)
    assert samples.best == Sample(why="trial 1 of study s: its checkpoint is damaged.", trial_id=1)


def test_checkpoints_are_read_where_storage_has_them(make_planted: Callable[..., Planted], tmp_path: Path) -> None:
    planted = make_planted(f"STORAGE={tmp_path / 'shared'}")
    assert not planted.study.checkpoint_dir(0).exists()
    samples = planted.sample()
    assert samples is not None
    assert samples.baseline is not None
    assert samples.baseline.text
    assert samples.best.text


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            torch.OutOfMemoryError("no memory\nat all"),
            "no samples were written: OutOfMemoryError: no memory at",
        ),
        (OSError(5, "storage is away"), "no samples were written: OSError: [Errno 5] storage is away"),
        (KeyboardInterrupt(), "interrupted before the samples were written; make resume STUDY=s does it"),
    ],
)
def test_a_fault_of_sampling_is_a_line_and_the_study_ends_as_it_would(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capsys: Any, fault: BaseException, said: str
) -> None:
    def fail(*values: Any, **named: Any) -> str:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "sample", fail)
        finish_study(
            planted.study,
            read_options(planted.words),
            Terminal(as_json=False),
            samples=True,
            loaded=planted.plan.loaded,
        )
    assert said in capsys.readouterr().out
    assert load_samples(planted.study) is None
    assert "What it writes" not in (planted.study.path / "report.md").read_text()
    assert planted.study.best_env.exists()
    # The next command makes up for it.
    finish_study(planted.study, read_options(planted.words), Terminal(as_json=False), samples=True)
    assert "What it writes" in (planted.study.path / "report.md").read_text()


def test_sigterm_while_samples_are_written_leaves_the_report_of_all_trials(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "sample", lambda *values, **named: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        finish_study(planted.study, read_options(planted.words), Terminal(as_json=False), samples=True)
    assert load_samples(planted.study) is None
    assert planted.study.best_env.exists()
    assert (planted.study.path / "report.md").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_report_is_written_leaves_it_whole(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def write_best(study: Study) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("search.setup.finish.write_best", write_best)
    finish_study(planted.study, read_options(planted.words), Terminal(as_json=False), samples=False)
    assert (planted.study.path / "report.md").exists()


def test_a_disk_without_room_for_the_report_is_a_line_after_which_the_answer_is_printed(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(study: Study) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/full/s/report.html")

    monkeypatch.setattr("search.setup.finish.write_reports", full)
    options, terminal = read_options([*planted.words, "CONFIRM=0"]), Terminal(as_json=False)
    assert conclude(planted.study, 0, options, terminal, loaded=planted.plan.loaded) == 2
    out = capsys.readouterr().out
    told = (
        "no space left on the device. Make room; what was measured so far is kept. Then go on with: make report STUDY=s"
    )
    assert f"error: /full/s/report.html: {told}" in out
    assert "device time: " in out
    assert "report: " not in out


@pytest.mark.parametrize(("refusal", "code"), [(UserError("held"), 2), (MachineError("no memory"), 1)])
def test_a_confirmation_that_cannot_be_run_leaves_what_the_search_found(
    planted: Planted, refusal: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("search.commands.run_command.confirm_study", Mock(side_effect=refusal))
    options, terminal = read_options([*planted.words, "CONFIRM=1"]), Terminal(as_json=False)
    assert conclude(planted.study, 0, options, terminal, loaded=planted.plan.loaded) == code
    out = capsys.readouterr().out
    assert f"error: {refusal}" in out
    assert "device time: " in out
    assert (planted.study.path / "report.md").exists()


def test_a_text_that_has_changed_since_is_a_line(planted: Planted, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Other sentences, each of them once. " * 4000)
    assert planted.sample(f"TRAINING_DATA_SOURCE={other}", loaded=False) is None
    assert "no samples were written: study s: the text or the tokenizer" in capsys.readouterr().out


def test_an_interrupted_study_does_not_keep_its_person_waiting(planted: Planted, capsys: Any) -> None:
    finish_study(
        planted.study, read_options(planted.words), Terminal(as_json=False), samples=False, loaded=planted.plan.loaded
    )
    assert load_samples(planted.study) is None
    assert SAID not in capsys.readouterr().out


def test_a_prompt_that_is_no_text_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match=r"SAMPLE_PROMPT=.* is not UTF-8 text"):
        read_options(["SAMPLE_PROMPT=caf\udce9"])
