"""Confirmation and attribution of one real study: fresh seeds into the same study, combinations run once."""

import json
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import Study
from trainable.config import config_from

SPACE = """
description = "One rate is much better than the baseline's"
[baseline]
batch_size = 4
block_size = 32
[budget]
tokens = 12_288
[evaluation]
tokens = 512
count = 2
[scheduler]
name = "none"
[searcher]
name = "grid"
[search]
learning_rate = { choice = [1e-5, 3e-3] }
"""


@pytest.fixture(scope="module")
def study(run: Any, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    space = tmp_path_factory.mktemp("spaces") / "two.toml"
    space.write_text(SPACE, encoding="utf-8")
    ran = run("run", SPACE=str(space), STUDY="two", SKIP_PREFLIGHT="1")
    assert ran.code == 0, ran.stderr
    return Study(studies / "two")


def test_fresh_seeds_prove_the_better_rate_and_export_says_so(study: Study, run: Any) -> None:
    ran = run("confirm", "--json", STUDY="two", SEEDS="2", TOP="1")
    assert ran.code == 0, ran.stderr
    document = json.loads(ran.stdout)
    (verdict,) = document["verdicts"]
    assert (verdict["trial_id"], verdict["seeds"]) == (1, 2)
    assert verdict["mean_difference"] < -0.3
    rows = study.trials()
    assert [row["trial_id"] for row in rows] == [0, 1, 2, 3, 4, 5]
    fresh = [(row["seed"], row["learning_rate"]) for row in rows[2:]]
    assert sorted(fresh) == [(1, 1e-5), (1, 3e-3), (2, 1e-5), (2, 3e-3)]
    assert all(row["status"] == "completed" for row in rows)
    exported = json.loads(run("export", "--json", STUDY="two").stdout)
    assert exported["trial_id"] == 1
    assert exported["confirmed"] == (verdict["outcome"] == "better")
    assert exported["seeds"] == 2


def test_one_change_is_attributed_without_a_run_that_is_known(study: Study, run: Any, studies: Path) -> None:
    known = study.trials()[:2]
    ran = run("attribute", "--json", STUDY="two", SEEDS="1", SKIP_PREFLIGHT="1")
    assert ran.code == 0, ran.stderr
    (setting,) = json.loads(ran.stdout)["settings"]
    assert setting["name"] == "learning_rate"
    assert setting["shapley"] == pytest.approx(known[1]["val_loss"] - known[0]["val_loss"])
    own = Study(studies / "attribute-two-12288")
    assert own.trials() == []
    assert (own.path / "attribution.png").stat().st_size > 10_000

    wider = run("attribute", "--json", STUDY="two", SEEDS="1", BUDGET_TOKENS="6144", SKIP_PREFLIGHT="1")
    assert wider.code == 0, wider.stderr
    rows = Study(studies / "attribute-two-6144").trials()
    assert [(row["trial_id"], row["learning_rate"], row["tokens_seen"]) for row in rows] == [
        (0, 1e-5, 6144),
        (1, 3e-3, 6144),
    ]
    assert config_from(rows[0]).training_steps == 6144 // 128
