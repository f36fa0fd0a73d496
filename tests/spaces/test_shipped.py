"""The space files that come with the project."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from spaces.domains import FloatRange
from spaces.overrides import Settings, with_overrides
from spaces.read.load import load_space
from spaces.read.space_files import list_spaces
from trainable.config import BEFORE, DOCUMENTED, LR_SCHEDULES

NAMES = ["before_after", "lora", "plateau", "schedule", "smoke"]


def test_they_are_listed() -> None:
    assert [path.stem for path in list_spaces()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_sound_and_says_what_it_asks(name: str) -> None:
    space = load_space(name)
    assert (space.name, space.path) == (name, f"spaces/{name}.toml")
    assert space.description
    assert space.config_for(space.baseline_params()) == space.baseline
    assert space.evaluation_tokens()[-1] == space.budget.tokens
    for path in list_spaces():
        assert path.read_text(encoding="utf-8").startswith("# Question: ")


def test_plateau_holds_the_storys_values() -> None:
    space = load_space("plateau")
    assert space.baseline_name == "documented"
    assert space.baseline.training_steps == 300_000 // 4096
    held = {"batch_size": (8, 32), "block_size": (64, 128, 256), "learning_rate": (1e-5, 2e-5, 5e-5, 1e-4, 3e-2)}
    for parameter, values in held.items():
        domain = space.domain(parameter)
        assert domain is not None
        assert [value for value in values if not domain.contains(value)] == []
    schedules = space.domain("lr_schedule")
    assert schedules is not None
    assert set(schedules.examples()) == set(LR_SCHEDULES)
    assert space.rung_tokens() == (33_600, 100_800)
    assert len(space.evaluation_tokens()) == 5
    assert space.trials == 24


def test_before_after_is_the_grid_of_the_four_changes() -> None:
    space = load_space("before_after")
    cells = space.grid_points()
    assert (len(cells), space.trials, space.rung_tokens()) == (16, 16, ())
    configs = [space.config_for(cell) for cell in cells]
    assert len(set(configs)) == 16
    assert configs[0] == space.baseline
    assert all(config.warmup_steps == round(0.1 * config.training_steps) for config in configs if config.has_warmup)
    assert sum(config.has_warmup for config in configs) == 8

    at_befores_length = with_overrides(space, Settings(budget_tokens=BEFORE.tokens_per_step * BEFORE.training_steps))
    configs = [at_befores_length.config_for(cell) for cell in at_befores_length.grid_points()]
    assert BEFORE in configs
    assert at_befores_length.baseline.training_steps == 2500


def test_schedule_keeps_batch_and_block() -> None:
    space = load_space("schedule")
    assert {p.name for p in space.parameters} == {
        "lr_schedule",
        "learning_rate",
        "warmup_frac",
        "decay_frac",
        "min_lr_frac",
    }
    around = with_overrides(space, Settings(baseline=("before", BEFORE)))
    config = around.config_for({"lr_schedule": "wsd", "decay_frac": 0.3, "warmup_frac": 0.05, "min_lr_frac": 0.0})
    assert (config.batch_size, config.block_size, config.warmup_steps) == (8, 256, round(0.05 * (1_200_000 // 2048)))
    assert space.domain("learning_rate") == FloatRange(1e-6, 1e-2, log=True)
    assert space.baseline.learning_rate == DOCUMENTED.learning_rate


def test_lora_searches_adapters_at_ten_times_the_rates() -> None:
    space, plateau = load_space("lora"), load_space("plateau")
    assert (space.budget.tokens, space.trials) == (plateau.budget.tokens, plateau.trials)
    assert (space.baseline.use_lora, space.baseline.learning_rate) == (True, 10 * DOCUMENTED.learning_rate)
    assert replace(space.baseline, use_lora=False, learning_rate=1e-5) == plateau.baseline
    assert {p.name for p in space.parameters} == {
        *("batch_size", "learning_rate", "lora_rank", "lora_alpha", "lora_dropout")
    }


def test_smoke_is_small() -> None:
    space = load_space("smoke")
    assert (space.trials, space.budget.tokens, space.baseline.tokens_per_step) == (4, 12_288, 128)


def test_loading_needs_no_heavy_library() -> None:
    code = (
        "import sys; from spaces.read.load import load_space; load_space('plateau'); "
        "print(sorted({'torch', 'ray', 'optuna', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
