"""What decided runs cost, in words: tokens, and the time by the study's own pace, in whole rounds of the slots."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from results.confirmation.attempt import plan_attempt, planned_runs
from results.study.folder import Study
from results.words import duration_words
from search.setup.run_plan import cost_words
from spaces.budget import Budget
from tests.results.report_study import make_report_study


def test_runs_tokens_and_time_by_the_studys_own_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    study = make_report_study(tmp_path / "one", trials=5)
    rows = study.trials()
    # One that was stopped at its first steps, which are slow, says nothing of a whole run.
    rows.append({**rows[1], "trial_id": 5, "status": "stopped", "tokens_seen": 1, "active_s": 9.0})
    runs = planned_runs(plan_attempt(rows, (), study="one", top=1, seeds=5), rows)
    monkeypatch.setattr(Study, "trials", lambda _: rows)
    rates = sorted(row["active_s"] / row["tokens_seen"] for row in rows if row["status"] == "completed")
    tokens = sum(run.config.training_steps * run.config.tokens_per_step for run in runs)
    budget, slots = Budget(tokens=400_000), SimpleNamespace(count=4)
    plan: Any = SimpleNamespace(study=study, document=study.document(), slots=slots, budget=budget)
    # 10 runs in 4 slots are three rounds.
    expected = duration_words(3 * tokens / 10 * rates[len(rates) // 2])
    assert cost_words(plan, runs) == f"10 runs, {tokens / 1e6:.3g}M tokens, 4 at a time: about {expected}"

    rows.clear()
    assert cost_words(plan, runs).endswith("4 at a time; how long is known once the first have trained")
