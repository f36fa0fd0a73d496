"""What is exported is exactly the best trial, and nothing in a study can make a shell or make do anything else."""

import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from results.export import ENV_ORDER, export_cli, export_env, export_json, export_toml, search_command, write_best
from results.model_card import model_card
from results.study.folder import Study, create_study
from results.study.tables import TRIALS, write_table
from results.winner import winner_of
from search.options import read_options, with_origin
from spaces.budget import Budget
from spaces.domains import Choice, FloatRange
from spaces.read.load import load_space, space_from_toml
from tests.results.confirmed import add_attempt
from trainable.config import BEFORE, DOCUMENTED, ENV_NAMES, TrialConfig, make_config, parse_hyperparameter
from trainable.errors import UserError

HOSTILE = [
    "$(touch x)",
    "`touch x`",
    "a'b\"c",
    "'; touch x; '",
    "two\nlines\ntouch x",
    "\ntouch x\n",
    "cr\rtouch x",
    "bold \x1b[1m [red]markup[/red]",
    "back\\slash\\",
    " leads and trails ",
    "$HOME ${HOME} $$ !! ~ * ? # &",
    "#touch x",
    "ü\u2028\u2029\x85touch x",
    "not utf-8 \udcff",
    "-n",
    "",
]
SHELLS = [shell for shell in ("sh", "bash", "dash", "zsh") if shutil.which(shell)]

MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(
    studies: Path, make_document: Callable[..., dict[str, Any]], make_trial: Callable[..., dict[str, Any]]
) -> MakeStudy:
    def make(config: TrialConfig = BEFORE, *, trials: list[dict[str, Any]] | None = None, **document: Any) -> Study:
        study = create_study("one", make_document("one", **document))
        if trials is None:
            trials = [
                make_trial(0, val_loss=4.5, tokens_seen=409_600, seed=config.seed),
                make_trial(7, val_loss=4.25, tokens_seen=409_600, **asdict(config)),
                make_trial(8, "stopped", 4.0, rung=1),
            ]
        write_table(study.trials_path, trials, TRIALS)
        return study

    return make


def exported(text: str, cwd: Path, shell: str = "sh") -> dict[str, str]:
    """Return what `eval` of the text leaves in the environment; it must leave nothing else behind."""
    file = cwd / "best.env"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    show = f'for n in {" ".join(ENV_ORDER)}; do eval "v=\\${{$n-UNSET}}"; printf "%s\\0" "$v"; done'
    ran = subprocess.run(
        [shell, "-c", f'eval "$(cat best.env)"; {show}'],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    assert ran.stderr == b""
    assert [path.name for path in cwd.iterdir()] == ["best.env"]
    values = ran.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]
    return {name: value for name, value in zip(ENV_ORDER, values, strict=True) if value != "UNSET"}


def config_of(env: dict[str, str]) -> TrialConfig:
    return make_config(
        DOCUMENTED, {name: parse_hyperparameter(name, env[variable]) for variable, name in ENV_NAMES.items()}
    )


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


def test_the_lines_are_the_owners(make_study: MakeStudy) -> None:
    lines = export_env(make_study()).splitlines()
    assert lines[:4] == [
        "# study one, trial 7, after 409600 training tokens",
        "# val_loss 4.2500 nats/token; baseline 4.5000; difference -0.2500",
        "# one seed each, so not proven yet",
        "# evaluated on the same 9,920 held-out tokens at context 128 (all that the text gives) as every trial, fp32, "
        "dropout off",
    ]
    assert [line for line in lines if not line.startswith("#")] == [
        "export BATCH_SIZE=8",
        "export BLOCK_SIZE=256",
        "export GRAD_ACCUM_STEPS=1",
        "export LEARNING_RATE=2e-05",
        "export LR_SCHEDULE=warmup_cosine",
        "export WARMUP_STEPS=500",
        "export MIN_LR_FRAC=0.1",
        "export DECAY_FRAC=0.2",
        "export TRAINING_STEPS=5000",
        "export GRAD_CLIP_NORM=1.0",
        "export WEIGHT_DECAY=0.01",
        "export DROPOUT=0.1",
        "export PRECISION=fp32",
        "export USE_LORA=False",
        "export LORA_RANK=8",
        "export LORA_ALPHA=16",
        "export LORA_DROPOUT=0.0",
        "export LORA_TARGETS=auto",
        "export SEED=0",
        "export USE_LR_WARMUP=True",
        "export MODEL_TYPE=gpt2",
        "export GPT2_MODEL_NAME=tiny",
        "export TRAINING_DATA_SOURCE=''",
        "export VALIDATION_DATA_SOURCE=''",
        "export DOCUMENTS=''",
        "export CHECKPOINT_PATH=''",
        "export COMPILE=''",
        "export GRADIENT_CHECKPOINTING=''",
        "export WEIGHTS_ONLY=''",
        "export EVAL_BLOCK_SIZE=128",
        "export EVAL_TOKENS=16384",
        "export EXPORTED_FROM=one",
    ]


def test_the_winner_of_a_short_search_is_exported_for_a_long_run(make_study: MakeStudy) -> None:
    study = make_study()
    text = export_env(study, Budget(tokens=20_480_000))
    # 2,048 tokens a step; the tenth of the steps that warmed up stays a tenth.
    assert "export TRAINING_STEPS=10000\nexport GRAD" in text
    assert "export WARMUP_STEPS=1000\n" in text
    assert "export LEARNING_RATE=2e-05\n" in text
    assert "the schedule is stretched from 5000 to 10000 steps" in text
    assert "TRAINING_STEPS=10000" in export_cli(study, Budget(tokens=20_480_000))
    assert json.loads(export_json(study, Budget(tokens=20_480_000)))["hyperparameters"]["warmup_steps"] == 1000
    space = tomllib.loads(export_toml(study, Budget(tokens=20_480_000)))
    assert (space["budget"], space["baseline"]["training_steps"]) == ({"tokens": 20_480_000}, 10_000)
    assert "the schedule is shortened from 5000 to 100 steps" in export_env(study, Budget(tokens=204_800))
    with pytest.raises(UserError, match="less than one step"):
        export_env(study, Budget(tokens=100))
    # Enough for a step of the winner, and not of every shape in its space.
    with pytest.raises(UserError, match=r"with BUDGET_TOKENS=2048: .* tokens a step.*Set BUDGET_TOKENS="):
        export_toml(study, Budget(tokens=2048))
    shutil.rmtree(study.path)
    with pytest.raises(UserError, match=r"Set BUDGET_TOKENS="):  # no file is written whose [budget] could be changed
        export_toml(make_study(kind="baseline", budget_tokens=2048))


def test_a_budget_that_is_the_winners_own_changes_nothing(make_study: MakeStudy) -> None:
    study = make_study()
    assert export_env(study, Budget(tokens=5000 * 8 * 256)) == export_env(study)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_gets_exactly_the_trial(make_study: MakeStudy, cwd: Path, shell: str) -> None:
    config = replace(BEFORE, learning_rate=0.1 + 0.2, weight_decay=1e-300, dropout=1 / 3, seed=2**31 - 1)
    study = make_study(
        config,
        data_source="/data/q and a.txt",
        validation_data_source="/data/held out.txt",
        documents="jsonl:the text",
        checkpoint_path="/c.pt",
    )
    env = exported(export_env(study), cwd, shell)
    assert config_of(env) == config
    assert tuple(env) == ENV_ORDER
    assert (env["TRAINING_DATA_SOURCE"], env["CHECKPOINT_PATH"]) == ("/data/q and a.txt", "/c.pt")
    assert (env["VALIDATION_DATA_SOURCE"], env["DOCUMENTS"]) == ("/data/held out.txt", "jsonl:the text")


@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_in_a_study_reaches_the_shell(make_study: MakeStudy, cwd: Path, value: str) -> None:
    study = make_study(model=value, data_source=value, checkpoint_path=value)
    text = export_env(study)
    env = exported(text, cwd)
    assert [env[name] for name in ("GPT2_MODEL_NAME", "TRAINING_DATA_SOURCE", "CHECKPOINT_PATH")] == [value] * 3
    notes = json.loads(export_json(study))["notes"]
    assert all(note.isprintable() for note in notes)
    assert text.startswith("".join(f"# {note}\n" for note in notes) + "export ")


@pytest.mark.parametrize("value", HOSTILE)
def test_make_gets_exactly_the_values_from_the_command(make_study: MakeStudy, cwd: Path, value: str) -> None:
    study = make_study(model=value, data_source=value, checkpoint_path=value)
    (cwd / "Makefile").write_text('train:\n\t@printf "%s\\0" "$$BATCH_SIZE" "$$GPT2_MODEL_NAME" "$$CHECKPOINT_PATH"\n')
    command = export_cli(study).encode("utf-8", "surrogateescape")
    assert command.startswith(b"make train BATCH_SIZE=8 ")
    ran = subprocess.run(["sh", "-c", b"set -f; " + command], cwd=cwd, capture_output=True, check=True)
    assert ran.stdout.decode("utf-8", "surrogateescape").split("\0") == ["8", value, value, ""]
    assert [path.name for path in cwd.iterdir()] == ["Makefile"]


@pytest.mark.parametrize("value", HOSTILE)
def test_json_and_toml_load_whatever_the_values(make_study: MakeStudy, value: str) -> None:
    study = make_study(model=value, data_source=value, checkpoint_path=value)
    document = json.loads(export_json(study))
    assert [document[name] for name in ("model", "data_source", "checkpoint_path")] == [value] * 3
    assert tomllib.loads(export_toml(study))["baseline"] == {k: v for k, v in asdict(BEFORE).items() if k != "seed"}


def test_the_json_says_what_the_comments_say(make_study: MakeStudy) -> None:
    document = json.loads(export_json(make_study()))
    assert {name: document[name] for name in ("study", "trial_id", "is_baseline", "val_loss", "baseline_val_loss")} == {
        "study": "one",
        "trial_id": 7,
        "is_baseline": False,
        "val_loss": 4.25,
        "baseline_val_loss": 4.5,
    }
    assert (document["val_loss_difference"], document["confirmed"], document["seeds"]) == (-0.25, False, 1)
    assert document["evaluation"] == {"block_size": 128, "tokens": 16_384}
    assert TrialConfig(**document["hyperparameters"]) == BEFORE
    assert config_of(document["env"]) == BEFORE


SCHEDULES = [
    ("constant", 0, "False", False),
    ("constant", 500, "False", False),
    ("warmup_constant", 0, "False", False),
    ("warmup_constant", 500, "False", True),
    ("warmup_cosine", 0, "False", True),
    ("warmup_cosine", 500, "True", False),
    ("linear", 0, "False", True),
    ("linear", 500, "False", True),
    ("wsd", 500, "False", True),
]


@pytest.mark.parametrize(("schedule", "warmup_steps", "use_lr_warmup", "beyond_them"), SCHEDULES)
def test_a_schedule_that_their_scripts_lack_is_said_so(
    make_study: MakeStudy, cwd: Path, schedule: str, warmup_steps: int, use_lr_warmup: str, beyond_them: bool
) -> None:
    text = export_env(make_study(replace(BEFORE, lr_schedule=schedule, warmup_steps=warmup_steps)))
    env = exported(text, cwd)
    assert env["USE_LR_WARMUP"] == use_lr_warmup
    assert env["WARMUP_STEPS"] == ("0" if schedule == "constant" else str(warmup_steps))
    note = f"USE_LR_WARMUP cannot say LR_SCHEDULE={schedule} WARMUP_STEPS={warmup_steps}\n"
    assert (note in text) == beyond_them
    assert ("cannot say" in text) == beyond_them


def test_the_variables_that_their_scripts_do_not_read_are_named_once(make_study: MakeStudy) -> None:
    (line,) = [line for line in export_env(make_study()).splitlines() if "do not read" in line]
    assert line.startswith("# training.py and training_resume.py do not read GRAD_ACCUM_STEPS WARMUP_STEPS ")
    assert "BATCH_SIZE" not in line


def test_a_checkpoint_says_that_its_weights_alone_were_taken(make_study: MakeStudy) -> None:
    text = export_env(make_study(checkpoint_path="/c.pt"))
    assert "# every trial took the weights alone from /c.pt, as WEIGHTS_ONLY=True says" in text
    assert "export CHECKPOINT_PATH=/c.pt\n" in text


def test_how_the_trials_were_trained_goes_with_their_configuration(make_study: MakeStudy) -> None:
    device = {"type": "cpu", "name": "x", "count": 1, "compile": "off", "gradient_checkpointing": True}
    study = make_study(device=device)
    how = ["COMPILE=off", "GRADIENT_CHECKPOINTING=True"]
    assert [line for line in export_env(study).splitlines() if "COMPILE=" in line or "CHECKPOINTING=" in line] == [
        f"export {word}" for word in how
    ]
    for command in (export_cli(study), search_command(study.document(), "SPACE=plateau")):
        assert {*how} <= {*command.split()}
    options = read_options(export_cli(study).split()[2:])
    assert (options.compile, options.gradient_checkpointing) == ("off", True)


def test_the_baseline_as_the_best_is_said_so(make_study: MakeStudy, make_trial: Callable[..., dict[str, Any]]) -> None:
    study = make_study(trials=[make_trial(0, val_loss=4.5), make_trial(1, val_loss=4.6)])
    text = export_env(study)
    assert "# val_loss 4.5000 nats/token; this is the baseline: no completed trial beat it\n" in text
    assert "export BATCH_SIZE=32\n" in text
    assert json.loads(export_json(study))["is_baseline"] is True


@pytest.mark.parametrize("status", ["interrupted", "unstable", None])
def test_a_baseline_that_has_not_completed_is_no_measure(
    make_study: MakeStudy, make_trial: Callable[..., dict[str, Any]], status: str | None
) -> None:
    trials = [make_trial(0, status, 3.0)] if status else []
    study = make_study(trials=[*trials, make_trial(1, val_loss=4.6)])
    assert f"; the baseline has not completed ({status or 'not started'})\n" in export_env(study)
    document = json.loads(export_json(study))
    assert document["baseline_val_loss"] is document["val_loss_difference"] is None


def test_without_a_completed_trial_there_is_one_line(
    make_study: MakeStudy, make_trial: Callable[..., dict[str, Any]]
) -> None:
    study = make_study(trials=[make_trial(0, "failed"), make_trial(1, "unstable"), make_trial(2, "unstable")])
    for export in (export_env, export_json, export_toml, export_cli):
        with pytest.raises(UserError) as caught:
            export(study)
        assert str(caught.value) == "study one has no completed trial to export (2 unstable, 1 failed)."
    with pytest.raises(UserError):
        write_best(study)
    assert not study.best_env.exists()
    study.trials_path.unlink()
    with pytest.raises(UserError, match=r"\(none has started\)"):
        export_env(study)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "model: it must be a text"),
        ({"model": "a\0b"}, "cannot be the text of a variable"),
        ({"model": "\ud800"}, "surrogates not allowed"),
        ({"data_source": 3}, "data_source: it must be a text"),
        ({"evaluation": {"block_size": 128}}, "evaluation.tokens: it is missing"),
        ({"evaluation": 5}, "evaluation: it must be a table"),
        ({"evaluation": {"block_size": "x\ny", "tokens": 1}}, "evaluation.block_size: "),
    ],
)
def test_a_damaged_study_json_is_one_line(make_study: MakeStudy, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"study\.json") as caught:
        export_env(make_study(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trial_out_of_bounds_is_refused(make_study: MakeStudy, make_trial: Callable[..., dict[str, Any]]) -> None:
    study = make_study(trials=[make_trial(0, val_loss=4.5, lr_schedule="x\nexport A=1")])
    with pytest.raises(UserError, match="LR_SCHEDULE"):
        export_env(study)


def test_the_files_are_what_is_printed(make_study: MakeStudy) -> None:
    study = make_study(model="not utf-8 \udcff")
    write_best(study)
    assert study.best_env.read_text("utf-8", "surrogateescape") == export_env(study)
    assert study.best_json.read_text() == export_json(study)
    assert sorted(path.name for path in study.path.iterdir()) == [
        "best.env",
        "best.json",
        "steps",
        "study.json",
        "trials.parquet",
    ]


def test_the_proven_trial_is_exported_before_the_luckiest(
    make_study: MakeStudy, make_trial: Callable[..., dict[str, Any]]
) -> None:
    trials = [make_trial(0, val_loss=4.5), make_trial(1, val_loss=4.2, batch_size=8)]
    study = make_study(trials=[*trials, make_trial(2, val_loss=4.3, batch_size=16)])
    assert json.loads(export_json(study))["trial_id"] == 1
    add_attempt(study, {0: (4.5, 4.51, 4.49), 1: (4.4, 4.6, 4.5), 2: (4.3, 4.32, 4.28)})
    document = json.loads(export_json(study))
    assert (document["trial_id"], document["confirmed"], document["seeds"], document["search_best"]) == (2, True, 3, 1)
    assert document["mean_difference"] == pytest.approx(-0.2)
    text = export_env(study)
    assert "# better than the baseline on 3 fresh seeds; interval -" in text
    assert "# trial 1 came first in the search, val loss 4.2000 on one seed; not proven with 3 seeds" in text


def test_toml_is_the_studys_space_around_the_winner(make_study: MakeStudy) -> None:
    """Its comments stay, its budget is what was run, and its domains hold the winner that BASELINE= had brought in."""
    study = make_study(make_config(BEFORE, {"batch_size": 12, "learning_rate": 5e-3}))
    text = export_toml(study)
    assert "# A comment of the person who wrote the space." in text
    assert "# study one, trial 7, after 409600 training tokens" in text
    space = space_from_toml(text, name="one", path="one.toml")
    assert space.budget.tokens == 409_600
    assert (space.baseline.batch_size, space.baseline.learning_rate) == (12, 5e-3)
    assert space.domain("batch_size") == Choice((8, 32, 12))
    learning_rate = space.domain("learning_rate")
    assert isinstance(learning_rate, FloatRange)
    assert learning_rate.contains(5e-3)


def test_an_exported_space_that_was_searched_is_exported_without_the_words_on_its_old_winner(
    make_study: MakeStudy, make_trial: Callable[..., dict[str, Any]], studies: Path
) -> None:
    """Twice round, the file said of two trials that each is the winner."""
    text = export_toml(make_study())
    shutil.rmtree(studies / "one")
    file = {"name": "own", "path": "own.toml", "description": "", "toml": text}
    again = export_toml(make_study(space=file, trials=[make_trial(0, val_loss=3.5)]))
    assert "# A comment of the person who wrote the space." in again
    assert [line for line in again.splitlines() if line.startswith("# study ")] == [
        "# study one, trial 0, after 0 training tokens"
    ]
    assert again.count("to search it with this study's model and text") == 1


def test_toml_searches_no_more_what_the_study_had_pinned(make_study: MakeStudy) -> None:
    """A model of 64 positions is searched with BLOCK_SIZE=64: the plateau space itself does not fit such a budget."""
    config = make_config(BEFORE, {"batch_size": 8, "block_size": 64, "warmup_steps": 4, "training_steps": 71})
    file = {"name": "plateau", "path": "spaces/plateau.toml", "description": "", "toml": load_space("plateau").toml}
    for pins in ({"block_size": 64}, {"block_size": 64, "lr_schedule": "warmup_cosine", "dropout": 0.1}):
        settings = {"budget_tokens": 36_600, "pins": pins}
        study = make_study(config, space=file, settings=settings, budget_tokens=36_600)
        space = space_from_toml(export_toml(study), name="one", path="one.toml")
        searched = {"batch_size", "block_size", "learning_rate", "lr_schedule", "warmup_frac"} - set(pins)
        assert {parameter.name for parameter in space.parameters} == searched
        warmup = next(parameter for parameter in space.parameters if parameter.name == "warmup_frac")
        assert (warmup.condition is None) == ("lr_schedule" in pins)
        assert (space.baseline.block_size, space.budget.tokens) == (64, 36_600)
        shutil.rmtree(study.path)


def test_toml_widens_no_domain_to_what_the_winner_does_not_read(make_study: MakeStudy) -> None:
    toml = """
trials = 4
[baseline]
lr_schedule = "linear"
warmup_frac = 0.1
[budget]
tokens = 409_600
[search]
lr_schedule = { choice = ["constant", "linear"] }
warmup_frac = { uniform = [0.05, 0.2] }
lora_rank = { choice = [16, 8] }
"""
    winner = make_config(DOCUMENTED, {"training_steps": 100, "lora_rank": 4})
    study = make_study(winner, space={"name": "own", "path": "own.toml", "description": "", "toml": toml})
    space = space_from_toml(export_toml(study), name="own", path="own.toml")
    assert space.domain("warmup_frac") == FloatRange(0.05, 0.2)
    assert space.domain("lora_rank") == Choice((16, 8))
    assert space.baseline == replace(winner, lora_rank=8)


def test_a_study_that_searched_no_space_exports_the_plateau_space_around_its_configuration(
    make_study: MakeStudy,
) -> None:
    space = space_from_toml(export_toml(make_study(space=None)), name="one", path="one.toml")
    assert space.baseline.learning_rate == BEFORE.learning_rate
    assert space.budget.tokens == load_space("plateau").budget.tokens
    assert {parameter.name for parameter in space.parameters} == {
        parameter.name for parameter in load_space("plateau").parameters
    }


def test_a_models_card_names_its_trial_and_a_commit_only_where_one_is_known(make_study: MakeStudy) -> None:
    study = make_study()
    document = {**study.document(), "git_commit": "5f4a746512483f77e7f5959d3624a9316b2cfac2"}
    for commit in (True, False):
        study.study_json.write_text(json.dumps(document))
        winner = winner_of(study)
        assert winner.trial is not None
        card = model_card(study, winner.trial, winner, base_license=None)
        assert "Trial 7 of study one" in card
        assert ("- commit: 5f4a" in card) == commit
        document.pop("git_commit", None)


def test_the_origin_of_exported_variables_is_told_where_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "8")
    assert with_origin("Unset BATCH_SIZE.", ()) == "Unset BATCH_SIZE."
    monkeypatch.setenv("EXPORTED_FROM", "one")
    told = with_origin("Unset BATCH_SIZE.", ())
    assert told.startswith("Unset BATCH_SIZE. BATCH_SIZE was set by the export of study one; unset BATCH_SIZE BLOCK_")
    assert told.endswith(" EXPORTED_FROM")
    assert with_origin("There is no space platau.", ()) == "There is no space platau."
    assert with_origin("Unset BATCH_SIZE.", ["BATCH_SIZE"]) == "Unset BATCH_SIZE."
