"""Space files read whole: what a file may leave out, and the one line that each mistake gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spaces.domains import Choice, Condition, FloatRange, IntRange, SearchParameter
from spaces.protocol import Evaluation, Scheduler
from spaces.read.load import load_space
from spaces.space import SearchSpace
from trainable.config import BEFORE, DOCUMENTED, make_config
from trainable.errors import UserError

MakeSpace = Callable[..., SearchSpace]

GOOD = """\
description = "for tests"
trials = 4

[baseline]
batch_size = 4
block_size = 32

[budget]
tokens = 12_800

[evaluation]
tokens = 256
count = 4

[search]
batch_size = { choice = [2, 4] }
lr_schedule = { choice = ["constant", "linear"] }
learning_rate = { log_uniform = [1e-6, 1e-1] }
"""


def test_what_a_file_may_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text("trials = 2\nbudget.baseline_steps = 100\nsearch.dropout.choice = [0, 0.1]\n", encoding="utf-8")
    space = load_space(str(path))
    assert (space.name, space.path, space.description, space.trials) == ("short", str(path), "", 2)
    assert space.baseline_name == "documented"
    assert space.baseline == make_config(DOCUMENTED, {"training_steps": 100})
    assert space.budget.tokens == 409_600
    assert space.evaluation == Evaluation(128, 4096, 8, follows_baseline=True)
    assert space.scheduler == Scheduler("asha", 45_512, 3, 1 / 9)
    assert space.rung_tokens() == (45_512, 136_536)
    assert space.searcher == "tpe"
    assert space.parameters == (SearchParameter("dropout", Choice((0.0, 0.1))),)
    assert space.stability == {}


def test_everything_a_file_can_say(make_space: MakeSpace) -> None:
    space = make_space(
        {
            "warmup_frac": {"uniform": [0, 0.3], "when": {"lr_schedule": ["linear"]}},
            "lr_schedule": {"choice": ["linear", "constant"]},
            "grad_accum_steps": {"int": [1, 5], "step": 2},
            "batch_size": {"int": [2, 8], "log": True},
            "weight_decay": {"log_uniform": [1e-3, 1]},
        },
        baseline={"from": "before", "block_size": 16, "warmup_frac": 0.25, "lr_schedule": "linear"},
        budget={"baseline_steps": 100},
        evaluation={"block_size": 64, "tokens": 512, "count": 2},
        scheduler={"name": "none", "grace_frac": 0.5, "reduction_factor": 4},
        searcher={"name": "random"},
        stability={"spike_sigma": 7.5, "spike_quiet_steps": 30},
    )
    assert space.parameters == (
        SearchParameter("lr_schedule", Choice(("linear", "constant"))),
        SearchParameter("warmup_frac", FloatRange(0.0, 0.3), Condition("lr_schedule", ("linear",))),
        SearchParameter("grad_accum_steps", IntRange(1, 5, step=2)),
        SearchParameter("batch_size", IntRange(2, 8, log=True)),
        SearchParameter("weight_decay", FloatRange(1e-3, 1.0, log=True)),
    )
    assert space.baseline_name == "before, changed"
    assert space.baseline == make_config(
        BEFORE, {"block_size": 16, "lr_schedule": "linear", "training_steps": 100, "warmup_steps": 25}
    )
    assert space.budget.tokens == 12_800
    assert space.evaluation == Evaluation(64, 512, 2)
    assert space.scheduler == Scheduler("none", 6_400, 4, 0.5)
    assert space.searcher == "random"
    assert space.stability == {"spike_sigma": 7.5, "spike_quiet_steps": 30}


def test_values_take_the_type_of_their_hyperparameter(make_space: MakeSpace) -> None:
    space = make_space({"weight_decay": {"choice": [0, 0.01, 1]}})
    assert [type(value) for value in space.parameters[0].domain.examples()] == [float] * 3


def test_a_condition_on_lora(make_space: MakeSpace) -> None:
    with_lora = {"use_lora": [True]}
    space = make_space(
        {"use_lora": {"choice": [True, False]}, "lora_rank": {"int": [2, 64], "log": True, "when": with_lora}}
    )
    assert space.baseline_params() == {"use_lora": False}
    config = space.config_for({"use_lora": True, "lora_rank": 32})
    assert (config.use_lora, config.lora_rank) == (True, 32)
    with pytest.raises(UserError, match=r"use_lora choice does not fit: .*must be True or False, not 1"):
        make_space({"use_lora": {"choice": [1, 0]}})
    with pytest.raises(UserError, match=r"use_lora cannot be searched by int. Use choice\."):
        make_space({"use_lora": {"int": [0, 1]}})


BROKEN: list[tuple[str, str, str]] = [
    # What is replaced in GOOD, by what, and the line after the file's name.
    ("trials = 4", "trails = 4", "the top level has an unknown key 'trails'. Did you mean 'trials'?"),
    ("trials = 4", "trials = 0", "trials is 0; it must be at least 1 and at most 100000."),
    ("trials = 4", "trials = 4.0", "trials must be a whole number such as 1, not 4.0."),
    ("trials = 4", 'trials = "AUTO"', "trials must be a whole number such as 24, or \"auto\", not 'AUTO'."),
    ("trials = 4", "trials = true", "trials must be a whole number such as 1, not True."),
    (
        "trials = 4",
        "",
        'the top level has no trials. Say how many, such as trials = 24, or set [searcher] name = "grid".',
    ),
    ("trials = 4", f"trials = {10**30}", "'trials' has a number beyond 64 bits."),
    ('"for tests"', "3", "description must be a string, not 3."),
    (
        "[baseline]\nbatch_size = 4\nblock_size = 32",
        'baseline = "documentd"',
        "baseline has no choice 'documentd'. Did you mean 'documented'? "
        "A file or a study is named on the command line, by BASELINE=.",
    ),
    (
        "block_size = 32",
        "block_size = 1",
        "[baseline] block_size does not fit: block_size (BLOCK_SIZE) is 1; it must be at least 2 and at most "
        "1048576 (tokens per sequence); the documented value is 128.",
    ),
    ("block_size = 32", "block_sise = 32", "[baseline] has an unknown key 'block_sise'. Did you mean 'block_size'?"),
    ("block_size = 32", "seed = 1", "[baseline] has the key 'seed', which SEED sets for every trial of a study."),
    (
        "block_size = 32",
        'lr_schedule = "linear"\ntraining_steps = 5\nwarmup_steps = 6',
        "[baseline] does not fit together: warmup_steps=6 is longer than the run of training_steps=5. "
        "Shorten WARMUP_STEPS or lengthen TRAINING_STEPS.",
    ),
    (
        "block_size = 32",
        "warmup_steps = 1\nwarmup_frac = 0.1",
        "[baseline] has warmup_steps and warmup_frac, which set the same thing. Drop one.",
    ),
    ("tokens = 12_800", "token = 12_800", "[budget] has an unknown key 'token'. Did you mean 'tokens'?"),
    (
        "tokens = 12_800",
        "tokens = 12_800\nbaseline_steps = 100",
        "[budget] must have one of tokens, baseline_steps, device_minutes, not tokens and baseline_steps. "
        "Write it like tokens = 400_000.",
    ),
    (
        "tokens = 12_800",
        "",
        "[budget] must have one of tokens, baseline_steps, device_minutes, not none. Write it like tokens = 400_000.",
    ),
    ("tokens = 12_800", "tokens = '12800'", "[budget] tokens must be a whole number such as 400000, not '12800'."),
    (
        "tokens = 12_800",
        "tokens = 1_000",
        "batch_size=4 x block_size=32 is 128 tokens a step, and every trial is first evaluated after 112. "
        "Set [budget] tokens = 1160 or more, or drop the largest sizes.",
    ),
    (
        "tokens = 12_800",
        "baseline_steps = 1_000_000_000_000",
        "[budget] tokens is 128000000000000; it must be at least 1 and at most 1000000000000.",
    ),
    ("trials = 4", "trials = 4\nscheduler = 5", "[scheduler] must be a table, not 5."),
    (
        "count = 4",
        "count = 4\nblock_size = 512",
        "[evaluation] tokens is 256; it must be at least 512 and at most 1000000000.",
    ),
    (
        "count = 4",
        "count = 4\nblock_size = 2_000_000",
        "[evaluation] block_size is 2000000; it must be at least 2 and at most 1048576.",
    ),
    ("count = 4", "count = 0", "[evaluation] count is 0; it must be at least 1 and at most 1000."),
    (
        "tokens = 12_800\n\n[evaluation]\ntokens = 256\ncount = 4",
        "tokens = 512\n\n[evaluation]\ntokens = 256\ncount = 1000",
        "[evaluation] count is 1000; it must be at least 1 and at most 512.",
    ),
    (
        "[search]",
        "[scheduler]\nname = 'hyperband'\n[search]",
        "[scheduler] name has no choice 'hyperband'. Known: asha, none.",
    ),
    (
        "[search]",
        "[scheduler]\nreduction_factor = 1\n[search]",
        "[scheduler] reduction_factor is 1; it must be at least 2 and at most 1000.",
    ),
    (
        "[search]",
        "[scheduler]\ngrace_tokens = 12_800\n[search]",
        "[scheduler] a grace of 12800 tokens leaves no rung below the budget of 12800 tokens. "
        'Lower it (grace_frac follows the budget), or set name = "none".',
    ),
    (
        "[search]",
        "[scheduler]\ngrace_tokens = 0\n[search]",
        "[scheduler] grace_tokens is 0; it must be at least 1 and at most 1000000000000.",
    ),
    (
        "[search]",
        "[scheduler]\ngrace_frac = 1\n[search]",
        "[scheduler] grace_frac is 1; a share of the budget is more than 0 and less than 1.",
    ),
    (
        "[search]",
        "[scheduler]\ngrace_frac = nan\n[search]",
        "[scheduler] grace_frac must be a finite number, not nan.",
    ),
    (
        "[search]",
        "[scheduler]\ngrace_frac = 0.1\ngrace_tokens = 1_000\n[search]",
        "[scheduler] has grace_frac and grace_tokens, which set the same thing. Drop one.",
    ),
    ("[search]", "[searcher]\nname = 'tpr'\n[search]", "[searcher] name has no choice 'tpr'. Did you mean 'tpe'?"),
    ("[search]", "[searcher]\nseed = 1\n[search]", "[searcher] has the key 'seed', which SEED sets for a study."),
    (
        "[search]",
        "[searcher]\nname = 'grid'\n[search]",
        "[search] learning_rate is a range, and a grid takes values. Use choice = [...], "
        'or [searcher] name = "random".',
    ),
    (
        "[search]",
        "[stability]\nspike_sigma = -3\n[search]",
        "[stability] spike_sigma is -3; it must be at least 1 and at most 100 (standard deviations); "
        "the default is 6.0.",
    ),
    (
        "[search]",
        "[stability]\nspike = 3\n[search]",
        "[stability] has an unknown key 'spike'. Did you mean 'spike_sigma'?",
    ),
    ("tokens = 12_800", "baseline_steps = 0", "[budget] baseline_steps is 0; it must be at least 1."),
    ("[search]", "[serch]", "the top level has an unknown key 'serch'. Did you mean 'search'?"),
    (
        "[search]",
        "[search]\ntrials = 4",
        "[search] has an unknown key 'trials'. It belongs at the top of the file, above the first [table].",
    ),
    ("batch_size = {", "BS = {", "[search] has an unknown key 'BS'. Did you mean 'batch_size'?"),
    ("learning_rate = {", "lr = {", "[search] has an unknown key 'lr'. Did you mean 'learning_rate'?"),
    (
        "batch_size = {",
        "epochs = {",
        "[search] has the key 'epochs', which cannot be searched: every trial gets the same tokens. Set [budget] "
        "tokens.",
    ),
    ("block_size = 32", "wd = 0.1", "[baseline] has an unknown key 'wd'. Did you mean 'weight_decay'?"),
    ("batch_size = {", "block_sise = {", "[search] has an unknown key 'block_sise'. Did you mean 'block_size'?"),
    ("batch_size = {", "BATCH_SIZE = {", "[search] has an unknown key 'BATCH_SIZE'. Did you mean 'batch_size'?"),
    (
        "batch_size = {",
        "seed = {",
        "[search] has the key 'seed', which cannot be searched: a seed is never tuned. "
        "Confirm the winner on fresh seeds instead.",
    ),
    (
        "batch_size = {",
        "training_steps = {",
        "[search] has the key 'training_steps', which cannot be searched: every trial gets the same tokens. "
        "Set [budget] tokens.",
    ),
    (
        "{ choice = [2, 4] }",
        "[2, 4]",
        "[search] batch_size must be a table, not [2, 4]. "
        "Write it like { choice = [8, 16] }; a fixed value belongs in [baseline].",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choise = [2, 4] }",
        "[search] batch_size has an unknown key 'choise'. Did you mean 'choice'?",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [2, 4], int = [2, 4] }",
        "[search] batch_size must have one of choice, uniform, log_uniform, int, not choice and int. "
        "Write it like { choice = [8, 16] }.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [] }",
        "[search] batch_size choice must be an array with at least one value, not [].",
    ),
    ("{ choice = [2, 4] }", "{ choice = [2, 4, 2] }", "[search] batch_size choice has 2 twice. Drop one."),
    (
        "{ choice = [2, 4] }",
        "{ choice = [4, true] }",
        "[search] batch_size choice does not fit: batch_size (BATCH_SIZE) must be a whole number, not True; "
        "the documented value is 32.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [4, 8.0] }",
        "[search] batch_size choice does not fit: batch_size (BATCH_SIZE) must be a whole number, not 8.0; "
        "the documented value is 32.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [4, [8]] }",
        "[search] batch_size choice must be one value, not [8].",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [0, 4] }",
        "[search] batch_size choice does not fit: batch_size (BATCH_SIZE) is 0; it must be at least 1 and at most "
        "65536 (sequences per micro-batch); the documented value is 32.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [2, 8] }",
        "the baseline 'documented, changed' has batch_size=4, outside [search] batch_size, choice [2, 8]. "
        "Add 4 to the choice, or change the baseline.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [2, 4, 65] }",
        "batch_size=65 x block_size=32 is 2080 tokens a step, and every trial is first evaluated after 1423. "
        "Set [budget] tokens = 18800 or more, or drop the largest sizes.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ uniform = [2, 4] }",
        "[search] batch_size cannot be searched by uniform. Use choice, int.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ int = [2, 5], step = 2 }",
        "[search] batch_size step is 2; it must be at least 1 and lead from 2 to 5 exactly.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ int = [2, 8], step = 2, log = true }",
        "[search] batch_size step cannot be combined with log = true. Drop one, or list the values in a choice.",
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [2, 4], step = 2 }",
        "[search] batch_size step is for int ranges only, not for choice.",
    ),
    (
        'choice = ["constant", "linear"]',
        'choice = ["constant", "linaer"]',
        "[search] lr_schedule choice does not fit: lr_schedule (LR_SCHEDULE) has no choice 'linaer'. "
        "Did you mean 'linear'?",
    ),
    (
        'choice = ["constant", "linear"]',
        "uniform = [0, 1]",
        "[search] lr_schedule cannot be searched by uniform. Use choice.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        "log_uniform = [1e-1, 1e-6]",
        "[search] learning_rate log_uniform goes from 0.1 to 1e-06; the first number must be the smaller one.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        "uniform = [1e-3, 1e-3]",
        "[search] learning_rate uniform goes from 0.001 to 0.001; the first number must be the smaller one.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        "log_uniform = [1e-6]",
        "[search] learning_rate log_uniform must be [low, high], not [1e-06].",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        "log_uniform = [0, 1e-1]",
        "[search] learning_rate log_uniform does not fit: learning_rate (LEARNING_RATE) is 0; it must be more than 0 "
        "and at most 100 (the schedule's peak); the documented value is 1e-05.",
    ),
    (
        "learning_rate = { log_uniform = [1e-6, 1e-1] }",
        "weight_decay = { log_uniform = [0, 1e-1] }",
        "[search] weight_decay log_uniform starts at 0; on a log scale the smaller number must be more than 0.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        "log_uniform = [1e-6, inf]",
        "[search] learning_rate log_uniform does not fit: learning_rate (LEARNING_RATE) is inf; it must be more than 0 "
        "and at most 100 (the schedule's peak); the documented value is 1e-05.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        "log_uniform = [1e-4, 1e-1]",
        "the baseline 'documented, changed' has learning_rate=1e-05, outside [search] learning_rate, "
        "log_uniform [0.0001, 0.1]. Widen the range to hold it, or change the baseline.",
    ),
    (
        "learning_rate = { log_uniform = [1e-6, 1e-1] }",
        "warmup_frac = { uniform = [0.01, 0.3] }",
        "the baseline 'documented, changed' has warmup_frac=0.0, outside [search] warmup_frac, "
        "uniform [0.01, 0.3]. Search it only where there is a warm-up, when = { lr_schedule = [...] }, or widen it, "
        "or change the baseline.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        'log_uniform = [1e-6, 1e-1], when = { lr_scedule = ["linear"] }',
        "[search] learning_rate when names 'lr_scedule', which is not searched here. Did you mean 'lr_schedule'?",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        'log_uniform = [1e-6, 1e-1], when = { lr_schedule = ["wsd"] }',
        "[search] learning_rate when lr_schedule has 'wsd', which is not in its choice [constant, linear].",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        'log_uniform = [1e-6, 1e-1], when = { lr_schedule = "linear" }',
        "[search] learning_rate when lr_schedule must be an array with at least one value, not 'linear'.",
    ),
    (
        "log_uniform = [1e-6, 1e-1]",
        'log_uniform = [1e-6, 1e-1], when = { lr_schedule = ["linear"], batch_size = [2] }',
        '[search] learning_rate when must name one parameter, not 2. Write it like { lr_schedule = ["linear"] }.',
    ),
    (
        "{ choice = [2, 4] }",
        "{ choice = [2, 4], when = { learning_rate = [1e-3] } }",
        "[search] batch_size when names 'learning_rate', log_uniform [1e-06, 0.1]; "
        "a condition needs a hyperparameter searched by choice.",
    ),
    (
        '{ choice = [2, 4] }\nlr_schedule = { choice = ["constant", "linear"] }',
        '{ choice = [2, 4], when = { lr_schedule = ["linear"] } }\n'
        'lr_schedule = { choice = ["constant", "linear"], when = { batch_size = [2] } }',
        "[search] has conditions that go in a circle: batch_size, lr_schedule. Drop one 'when'.",
    ),
    (
        "learning_rate = { log_uniform = [1e-6, 1e-1] }",
        "warmup_frac = { uniform = [0, 1.5] }",
        "[search] warmup_frac uniform is 1.5; a share of the run must be at least 0 and at most 1.",
    ),
    (
        "learning_rate = { log_uniform = [1e-6, 1e-1] }",
        "warmup_frac = { uniform = [0, 0.5] }\nwarmup_steps = { int = [0, 10] }",
        "[search] has warmup_steps and warmup_frac, which set the same thing. Drop one.",
    ),
    (
        "learning_rate = { log_uniform = [1e-6, 1e-1] }",
        "warmup_steps = { int = [0, 101] }",
        "warmup_steps=101 is longer than the run of 100 steps at batch_size=4 x block_size=32. "
        "Lower it, raise the budget, or use warmup_frac, a share of the run.",
    ),
    (
        GOOD[GOOD.index("batch_size = { choice") :],
        "",
        "[search] has no parameter. Name at least one, such as batch_size = { choice = [8, 16] }.",
    ),
    (
        GOOD[GOOD.index("batch_size = { choice") :],
        "batch_size = { choice = [4] }",
        "[search] leaves one configuration only. Give a parameter a second value.",
    ),
    (
        "count = 4",
        "count = = 4",
        "not valid TOML: Invalid value (at line 13, column 9). A text stands in quotes; true and false are written "
        "small.",
    ),
    (
        "[1e-6, 1e-1]",
        "[0,000001, 0,1]",
        "not valid TOML: Unclosed array (at line 18, column 37). Between values stands a comma, and in a number a "
        "point.",
    ),
    (
        "{ choice = [2, 4] }",
        "{\n  choice = [2, 4]\n}",
        "not valid TOML: Invalid initial character for a key part (at line 16, column 15). A key is of plain letters, "
        "and what is in { } stands on one line.",
    ),
    (
        "count = 4",
        "count = 4\n[search]",
        "not valid TOML: Cannot declare ('search',) twice (at line 16, column 8). A table stands once.",
    ),
    ("trials = 4", "trials = 4\nseed = 3", "the top level has the key 'seed', which SEED sets for a study."),
    (
        "batch_size = 4\n",
        'from = "mine.env"\nbatch_size = 4\n',
        "[baseline] from has no choice 'mine.env'. Known: before, documented. A file or a study is named on the "
        "command line, by BASELINE=.",
    ),
    (
        "learning_rate = { log_uniform = [1e-6, 1e-1] }",
        "warmup_frac = { choice = [0.0, 0.1] }\ndropout = { choice = [0.1, 0.2], when = { warmup_frac = [0.1] } }",
        "[search] dropout when names 'warmup_frac', a share; a condition needs a hyperparameter searched by choice.",
    ),
    ("1e-1] }\n", '1e-1] }\nx = "a', "not valid TOML: Unterminated string (at line 19, the end of the file)."),
    (
        "count = 4",
        "count = 4\ncount = 4",
        "not valid TOML: Cannot overwrite a value (at line 14, column 10). A key stands once.",
    ),
]


@pytest.mark.parametrize(("old", "new", "line"), BROKEN, ids=[f"{new[:40]!r}" for _, new, _ in BROKEN])
def test_a_mistake_gives_one_line(
    old: str, new: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert GOOD.count(old) == 1 or old in ("[search]", "block_size = 32", "tokens = 12_800"), old
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "spaces"
    folder.mkdir()
    monkeypatch.setattr("spaces.read.space_files.SPACES_DIRECTORY", folder)
    (folder / "broken.toml").write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_space("broken")
    assert str(caught.value) == f"spaces/broken.toml: {line}"


def test_the_file_that_is_broken_there_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_space(str(path)).trials == 4


def test_a_file_may_leave_the_number_of_trials_to_the_search(make_space: MakeSpace) -> None:
    search = {"batch_size": {"choice": [2, 4]}, "block_size": {"choice": [16, 32]}}
    space = make_space(search, trials="auto")
    assert (space.trials, space.ends_early) == (24, True)
    with pytest.raises(UserError) as caught:
        make_space(search, searcher={"name": "grid"}, trials="auto")
    assert str(caught.value) == (
        "small.toml: trials is auto, and the cells of a grid are all run. Drop it, or set another [searcher]."
    )


def test_a_grid_may_only_name_its_own_number_of_trials(make_space: MakeSpace) -> None:
    search = {"batch_size": {"choice": [2, 4]}, "dropout": {"choice": [0.0, 0.1]}}
    assert make_space(search, searcher={"name": "grid"}, trials=4).trials == 4
    # A constant rate reads no warm-up. Each cell was counted once, and is by a person.
    schedules = {"lr_schedule": {"choice": ["constant", "warmup_cosine"]}, "warmup_frac": {"choice": [0.0, 0.1]}}
    for trials in (3, 4):
        assert make_space(schedules, searcher={"name": "grid"}, trials=trials).trials == 3
    with pytest.raises(UserError) as caught:
        make_space(search, searcher={"name": "grid"}, trials=5)
    assert str(caught.value) == "small.toml: trials is 5, and the grid has 4 cells, which are all run. Drop it."


def test_a_grid_has_at_most_10_000_cells(make_space: MakeSpace) -> None:
    dropout = [i / 101 for i in range(99)] + [0.1]
    search = {"dropout": {"choice": dropout}, "weight_decay": {"choice": [i / 100 for i in range(100)]}}
    assert make_space(search, searcher={"name": "grid"}, trials=None).trials == 10_000
    search["dropout"]["choice"].append(0.985)
    with pytest.raises(UserError, match=r"^small.toml: \[search\] the grid has more than 10000 cells\. Drop values"):
        make_space(search, searcher={"name": "grid"}, trials=None)


def test_a_value_of_the_file_cannot_break_the_line(make_space: MakeSpace) -> None:
    hostile = 'a\nb\x1b[31m\u2028"' + "x" * 100_000
    searches: list[dict[str, Any]] = [
        {hostile: {"choice": [1]}},
        {"batch_size": hostile},
        {"batch_size": {"choice": [hostile]}},
        {"lr_schedule": {"choice": [hostile]}},
        {"lr_schedule": {hostile: 1}},
        {"batch_size": {"choice": [2, 4], "when": {hostile: [1]}}},
    ]
    for search in searches:
        with pytest.raises(UserError) as caught:
            make_space(search)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600
