"""What a person sees of planted ledgers: nothing that matters is cut, and every ending says why."""

import html
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from docs.make_pictures import write_terminal
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.terminal.console import Preparing, print_table, print_wide
from search.terminal.live_view import STATUS_STYLES, StudyView, ending_words, leaderboard_table, time_left_s
from spaces.domains import active_point
from spaces.read.load import load_space
from tests.results.report_study import make_report_study
from tests.rows import evaluation
from trainable.config import BEFORE, DOCUMENTED
from trainable.rows import ENDINGS, MetricsRow, TrialStatus, Verdict

NOW = datetime(2025, 11, 25, 3, 10, tzinfo=UTC)
CONFIGS = [
    DOCUMENTED,
    replace(BEFORE, learning_rate=1.234e-4, grad_accum_steps=16, batch_size=64),
    replace(DOCUMENTED, lr_schedule="warmup_constant", warmup_steps=1234, batch_size=64, block_size=1024),
    replace(DOCUMENTED, learning_rate=0.5),
    replace(BEFORE, learning_rate=1e-3),
    replace(DOCUMENTED, block_size=64, lr_schedule="wsd", warmup_steps=100),
    replace(DOCUMENTED, batch_size=512, block_size=1024),
    replace(DOCUMENTED, dropout=0.0),
]
VERDICT = Verdict(reason="divergence", step=41, evidence="median of 20 step losses 9.93, best 7.42, not falling")


def metrics(tokens: int, val_loss: float) -> MetricsRow:
    return evaluation(tokens // 100, val_loss, tokens_seen=tokens, tokens_per_s=12_345.6, active_s=12.0)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "planted" / "steps").mkdir(parents=True)
    return Study(tmp_path / "planted")


@pytest.fixture
def ledger(study: Study) -> Ledger:
    """Eight trials: the baseline and trial 1 completed, one of each other ending, two running, one just begun."""
    ledger = Ledger(study)
    for trial_id, config in enumerate(CONFIGS):
        ledger.start_trial(
            PlannedRun(trial_id=trial_id, purpose="search", is_baseline=trial_id == 0, config=config), started_at=NOW
        )
        if trial_id not in (6, 7):
            ledger.add_metrics(trial_id, metrics(45_000 * (trial_id + 1), 11.1234 - trial_id), 0)
    end(ledger, 1, "completed", tokens_seen=393_216)
    end(ledger, 2, "stopped")
    end(ledger, 3, "unstable", verdict=VERDICT)
    end(ledger, 6, "out_of_memory")
    end(ledger, 0, "completed", tokens_seen=397_312)
    return ledger


def end(ledger: Ledger, trial_id: int, status: TrialStatus, *, verdict: Verdict | None = None, **reached: int) -> None:
    ledger.end_trial(
        trial_id,
        status=status,
        verdict=verdict,
        ended_at=NOW,
        optimizer_steps=None,
        active_s=None,
        tokens_seen=reached.get("tokens_seen"),
    )


MakeView = Callable[..., StudyView]


@pytest.fixture
def make_view(study: Study, ledger: Ledger) -> MakeView:
    def make(width: int = 80, *, terminal: bool = False) -> StudyView:
        console = Console(record=True, width=width, file=io.StringIO(), force_terminal=terminal)
        return StudyView(study=study, ledger=ledger, trials_planned=24, console=console)

    return make


def drawn(console: Console, renderable: RenderableType) -> list[str]:
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


def words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_screen_holds_everything_at_any_usual_width(width: int, make_view: MakeView) -> None:
    view = make_view(width)
    with view:
        for trial_id, note in ((2, ""), (3, ""), (6, "batch_size=512 x block_size=1024 does not fit in cpu memory")):
            view.trial_ended(trial_id, note=note)
        view.console.export_text()
        lines = drawn(view.console, view.render())
    text = words(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    assert "study planted" in text
    assert "5/24 trials" in text
    # The leaderboard: every number of it whole.
    for cell in (
        "10.1234",
        "-1.0000",
        "393k",
        "64x16",
        "1.23e-04",
        "warmup_cosine",
        "11.1234",
        "397k",
    ):
        assert cell in text
    for heading in ("trial", "val loss", "vs base", "tokens", "batch", "block", "LR", "schedule", "ended"):
        assert heading in text
    # Running trials: how far, how good, how fast, what.
    assert "trial 4" in text
    assert "trial 5" in text
    assert "val loss 7.1234 12.3k tokens/s batch 8 x block 256," in text
    assert "trial 7" in text
    assert "val loss – loading the model" in text
    # Endings and why.
    assert "trial 3 unstable: divergence at step 41: median of 20 step losses 9.93, best 7.42, not falling;" in text
    assert "trial 2 stopped at 0.1% of the budget: val loss 9.1234 at its rung, not among the best there;" in text
    assert "batch_size=512 x block_size=1024 does not fit in cpu memory" in text


def test_a_line_of_the_leaderboard_is_one_trial_in_80_columns(make_view: MakeView, ledger: Ledger) -> None:
    table = leaderboard_table(ledger.trials(), limit=6, statuses=("completed", "stopped"))
    lines = drawn(make_view(80).console, table)
    assert lines[1].split() == [
        "1",
        "10.1234",
        "-1.0000",
        "393k",
        "64x16",
        "256",
        "1.23e-04",
        "warmup_cosine",
        "completed",
    ]
    assert any(
        line.split() == ["baseline", "11.1234", "397k", "32", "128", "1.00e-05", "constant", "completed"]
        for line in lines
    )


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("plateau", ["batch", "block", "LR", "schedule"]),
        ("smoke", ["batch", "block", "LR", "schedule"]),
        ("before_after", ["batch", "block", "LR", "schedule"]),
        ("lora", ["batch", "LR", "LoRA rank", "LoRA alpha", "LoRA dropout"]),
        ("schedule", ["LR", "schedule", "decay share", "lowest LR share"]),
    ],
)
def test_what_a_shipped_space_searches_has_a_column(name: str, columns: list[str], study: Study) -> None:
    space, ledger = load_space(name), Ledger(study)
    highest = {parameter.name: max(parameter.domain.examples()) for parameter in space.parameters}
    for number, point in enumerate((space.baseline_params(), active_point(space.parameters, highest))):
        config = space.config_for(point)
        run = PlannedRun(trial_id=number, purpose="search", is_baseline=number == 0, config=config, point=point)
        ledger.start_trial(run, started_at=NOW)
        ledger.add_metrics(number, metrics(45_000, 11.1234), 0)
    console = Console(record=True, width=80, file=io.StringIO())
    view = StudyView(study=study, ledger=ledger, trials_planned=4, console=console)
    assert ("LoRA rank 64, alpha 64, LoRA dropout 0.1" in words(drawn(console, view.render()))) == (name == "lora")
    end(ledger, 0, "completed")
    end(ledger, 1, "completed")
    table = leaderboard_table(ledger.trials(), limit=6, statuses=("completed",))
    headings = [str(column.header).replace("\n", " ") for column in table.columns]
    assert headings == ["trial", "val loss", "vs base", "tokens", *columns, "ended"]
    lines = drawn(console, table)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("width", [40, 80])
def test_however_much_is_searched_no_number_is_cut(width: int, ledger: Ledger, study: Study) -> None:
    names = ("weight_decay", "dropout", "grad_clip_norm", "use_lora", "lora_dropout", "min_lr_frac", "learning_rate")
    rows = [
        {**row, "use_lora": True, "lr_schedule": "linear", "weight_decay": 0.00515, "dropout": 0.15789, "point": point}
        for row, point in zip(ledger.trials(), [json.dumps(dict.fromkeys(names, 0))] * 8, strict=True)
    ]
    table, console = leaderboard_table(rows, limit=1, statuses=("completed",)), Console(record=True, width=width)
    print_table(console, table, wraps=True)
    printed = next(line for line in console.export_text().splitlines() if line.startswith("1 "))
    row = ["1", "10.1234", "-1.0000", "393k", "1.23e-04", "0.00515", "0.158", "1", "True", "0", "0.1", "completed"]
    assert printed.split() == row
    # A live screen leaves out what it has no room for.
    console = Console(record=True, width=80, file=io.StringIO())
    view = StudyView(study=study, ledger=ledger, trials_planned=8, console=console)
    view._rows = lambda: rows  # type: ignore[method-assign]
    (shown,) = [line.split() for line in drawn(console, view.render()) if line.startswith("1 ")]
    assert shown == [*row[:8], "completed"]


def test_the_loss_of_an_unstable_trial_cuts_no_other_column(make_view: MakeView, ledger: Ledger) -> None:
    rows = [{**row, "lr_schedule": "warmup_cosine"} for row in ledger.trials()]
    for row, end_loss in zip(rows[1:], (75346.0312, 3.21e12), strict=False):
        row.update(status="unstable", end_loss=end_loss)
    lines = drawn(make_view(80).console, leaderboard_table(rows, limit=9, statuses=("completed", "unstable")))
    assert not any("…" in line for line in lines)
    found = [line.split()[1:3] for line in lines if line.endswith("unstable")]
    assert sorted(found)[:2] == [["3.21e+12", "(train)"], ["75346.0312", "(train)"]]


def test_no_number_of_the_printed_leaderboard_is_cut_on_a_screen_of_40_columns(ledger: Ledger) -> None:
    console = Console(record=True, width=40, file=io.StringIO())
    print_wide(console, leaderboard_table(ledger.trials(), limit=1, statuses=("completed",)))
    text = console.export_text()
    row = ["1", "10.1234", "-1.0000", "393k", "64x16", "256", "1.23e-04", "warmup_cosine", "completed"]
    assert text.splitlines()[1].split() == row
    assert "…" not in text


def test_the_leaderboard_shows_the_baseline_below_the_leaders(ledger: Ledger) -> None:
    table = leaderboard_table(ledger.trials(), limit=1, statuses=("completed", "stopped"))
    assert list(table.columns[0].cells) == ["1", "baseline"]
    assert list(table.columns[2].cells) == ["-1.0000", ""]


def test_a_stopped_trial_is_not_compared_with_a_baseline_that_saw_more(ledger: Ledger) -> None:
    table = leaderboard_table(ledger.trials(), limit=9, statuses=("stopped",))
    assert list(table.columns[0].cells) == ["2"]
    assert list(table.columns[2].cells) == [""]


def test_while_the_baseline_runs_nothing_is_compared_with_it(study: Study) -> None:
    ledger = Ledger(study)
    ledger.start_trial(PlannedRun(trial_id=0, purpose="search", is_baseline=True, config=DOCUMENTED), started_at=NOW)
    ledger.start_trial(PlannedRun(trial_id=1, purpose="search", is_baseline=False, config=BEFORE), started_at=NOW)
    for trial_id in (0, 1):
        ledger.add_metrics(trial_id, metrics(1000, 5.0), 0)
    end(ledger, 1, "completed")
    table = leaderboard_table(ledger.trials(), limit=6, statuses=("completed", "stopped"))
    assert list(table.columns[0].cells) == ["1"]
    assert list(table.columns[2].cells) == [""]


def test_before_anything_has_begun(study: Study) -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    view = StudyView(study=study, ledger=Ledger(study), trials_planned=4, console=console)
    text = words(drawn(console, view.render()))
    assert "0/4 trials, 0 tokens" in text
    assert "starting Ray" in text
    assert "schedule" not in text
    # While the start is evaluated it is neither trials nor Ray that is waited for.
    view.trials_planned = 0
    assert words(drawn(console, view.render())) == "study planted"


def test_each_stage_before_the_first_step_is_told_apart(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(s=0.0)
    monkeypatch.setattr("search.terminal.live_view.time.monotonic", lambda: clock.s)
    console, ledger = Console(record=True, width=120, file=io.StringIO()), Ledger(study)
    view = StudyView(study=study, ledger=ledger, trials_planned=1, console=console)

    def now() -> str:
        view.refresh()
        return words(drawn(console, view.render()))

    with view:
        assert "starting Ray" in now()
        view.ray_is_up = True
        clock.s = 600.0
        assert "starting workers" in now()
        config = replace(DOCUMENTED, training_steps=2)
        run = PlannedRun(trial_id=0, purpose="search", is_baseline=True, config=config)
        ledger.start_trial(run, started_at=NOW)
        assert "loading the model" in now()
        ledger.add_metrics(0, replace(metrics(0, 7.0), tokens_per_s=0.0), None)
        assert "training" in now()
        assert "the first evaluation tells the time left" in now()
        # 4096 of 8192 tokens in the ten seconds since the trial began: what came before them says nothing of the rest.
        clock.s = 610.0
        ledger.add_metrics(0, metrics(4096, 7.0), 0)
        text = now()
        assert "12.3k tokens/s" in text
        assert "10 min 10 s so far, about 10 s left" in text
        clock.s = 616.0  # it trains on, and the next evaluation is yet to come
        assert "10 min 16 s so far, about 4.0 s left" in now()
        view.waiting.add(0)
        assert "waiting for a worker" in now()
        view.waiting.discard(0)
        assert "waiting for a worker" not in now()


def test_more_running_trials_than_fit_are_counted(study: Study) -> None:
    ledger = Ledger(study)
    for trial_id in range(64):
        ledger.start_trial(
            PlannedRun(trial_id=trial_id, purpose="search", is_baseline=trial_id == 0, config=DOCUMENTED),
            started_at=NOW,
        )
    console = Console(record=True, width=80, file=io.StringIO())
    view = StudyView(study=study, ledger=ledger, trials_planned=64, console=console)
    lines = drawn(console, view.render())
    assert "56 more" in lines
    assert len(lines) < 24


@pytest.mark.parametrize("terminal", [False, True])
def test_every_ending_is_kept_in_the_log_and_shown(terminal: bool, make_view: MakeView, study: Study) -> None:
    view = make_view(80, terminal=terminal)
    with view:
        view.say("header")
        view.trial_ended(2, note="")
        view.refresh()
    log = study.log_path.read_text(encoding="utf-8").splitlines()
    line = "trial 2 stopped at 0.1% of the budget: val loss 9.1234 at its rung, not among the best there;"
    assert [entry[9 : 9 + len(line)] for entry in log] == ["header", line]
    assert line in words(view.console.export_text().splitlines())


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    make_view: MakeView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    view = make_view(80, terminal=True)
    with Preparing(view.console) as progress:
        progress("loading torch", 0.0)
    with view:
        view.trial_ended(2, note="")
    text = words(view.console.export_text().splitlines())
    assert text.startswith("loading torch ... trial 2 stopped at 0.1% of the budget: val loss 9.1234")


def test_a_long_preparation_says_how_far_it_is_where_there_is_no_screen(
    make_view: MakeView, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = make_view(80).console
    with Preparing(console) as progress:
        progress("tokenizing the corpus", 0.1)
        progress("tokenizing the corpus", 0.2)
        monkeypatch.setattr("search.terminal.console.LINE_INTERVAL_S", 0.0)
        progress("tokenizing the corpus", 0.314)
        progress("loading torch", 0.0)
        progress("loading torch", 0.0)
    lines = console.export_text().splitlines()
    assert lines == ["tokenizing the corpus ...", "tokenizing the corpus: 31%", "loading torch ..."]


def test_a_long_preparation_says_on_a_screen_how_far_it_is(make_view: MakeView) -> None:
    console = make_view(80, terminal=True).console
    with Preparing(console) as progress:
        progress("tokenizing the corpus", 0.314)
        progress("loading torch", 0.0)
        tokenizing, loading = drawn(console, progress._bar)[-2:]
    assert "31%" in tokenizing
    assert "%" not in loading


def test_a_progress_line_now_and_then_where_there_is_no_screen(
    make_view: MakeView, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.terminal.live_view.LINE_INTERVAL_S", 0.0)
    view = make_view(80)
    with view:
        view.refresh()
    assert "5/24 trials, 1.6M tokens" in study.log_path.read_text(encoding="utf-8")


def ending(status: str, **changes: Any) -> str:
    row = {
        **asdict(DOCUMENTED),
        "trial_id": 7,
        "purpose": "search",
        "is_baseline": False,
        "status": status,
        "verdict": None,
        "val_loss": 6.5,
        "tokens_seen": 409_600,
        "training_steps": 1000,
        "rung": 0,
        **changes,
    }
    baseline = {**row, "trial_id": 0, "is_baseline": True, "status": "completed", "val_loss": 6.75}
    note = changes.get("note", "")
    return ending_words(row, changes.get("baseline", baseline), note=note)


CONFIG = "batch 32 x block 128, LR 1.00e-05, constant"


def test_every_ending_has_a_colour() -> None:
    assert STATUS_STYLES.keys() == set(ENDINGS)


def test_each_ending_in_words() -> None:
    assert ending("completed") == f"trial 7 completed: val loss 6.5000 (-0.2500 against the baseline); {CONFIG}"
    assert (
        ending("completed", val_loss=7.0)
        == f"trial 7 completed: val loss 7.0000 (+0.2500 against the baseline); {CONFIG}"
    )
    assert ending("completed", baseline=None) == f"trial 7 completed: val loss 6.5000; {CONFIG}"
    assert ending("completed", is_baseline=True) == f"baseline completed: val loss 6.5000; {CONFIG}"
    assert (
        ending("stopped", rung=1)
        == f"trial 7 stopped at 10% of the budget: val loss 6.5000 at its rung, not among the best there; {CONFIG}"
    )
    assert ending("unstable", verdict="nonfinite at step 3: loss nan") == (
        f"trial 7 unstable: nonfinite at step 3: loss nan; {CONFIG}"
    )
    assert ending("out_of_memory", note="batch_size=32 does not fit") == (
        f"trial 7 out of memory at 10% of the budget: batch_size=32 does not fit; {CONFIG}"
    )
    assert ending("failed") == f"trial 7 failed at 10% of the budget; {CONFIG}"
    assert ending("interrupted") == f"trial 7 interrupted at 10% of the budget; {CONFIG}"


def test_a_run_that_confirms_or_attributes_says_so() -> None:
    confirmation = {"purpose": "confirmation", "of_trial": 0, "attempt": 1, "seed": 1}
    assert ending("completed", **confirmation) == f"baseline, seed 1 completed: val loss 6.5000; {CONFIG}"
    assert ending("failed", **{**confirmation, "of_trial": 3}).startswith("trial 3, seed 1 failed at 10%")
    attribution = {"purpose": "attribution", "combination": "schedule", "seed": 2}
    assert ending("completed", **attribution).startswith("schedule, seed 2 completed: val loss 6.5000; ")


def test_a_confirmation_names_what_was_searched(make_view: MakeView, ledger: Ledger) -> None:
    """Two candidates that differ in their dropout alone must not look alike."""
    config, point = replace(DOCUMENTED, dropout=0.25), {"dropout": 0.25}
    ledger.start_trial(PlannedRun(trial_id=8, purpose="search", config=config, point=point), started_at=NOW)
    again = PlannedRun(trial_id=9, purpose="confirmation", of_trial=8, attempt=1, config=replace(config, seed=1))
    ledger.start_trial(again, started_at=NOW)
    ledger.add_metrics(9, metrics(45_000, 6.5), 0)
    end(ledger, 9, "completed")
    view = make_view(160)
    view.trial_ended(9, note="")
    assert view.endings[0] == f"trial 8, seed 1 completed: val loss 6.5000; {CONFIG}, dropout 0.25"


def trial(tokens: int, *, ended: bool, baseline: bool = False) -> dict[str, Any]:
    status = "stopped" if ended else "running"
    full = {"training_steps": 1000, "batch_size": 1, "block_size": 1, "grad_accum_steps": 1}
    return {"tokens_seen": tokens, "status": status, "is_baseline": baseline, **full}


@pytest.mark.parametrize(
    ("trials", "planned", "left_s"),
    [
        ([], 4, None),
        ([trial(0, ended=False, baseline=True)], 4, None),
        # The baseline has half to go; three more of half the budget each: 2000 tokens at 500 in 10 s.
        ([trial(500, ended=False, baseline=True)], 4, 40.0),
        # One ended after 100: the two to come take 100 each, the running one has 50 to go, the baseline 600.
        (
            [trial(400, ended=False, baseline=True), trial(100, ended=True), trial(50, ended=False)],
            5,
            (600 + 50 + 200) / 550 * 10,
        ),
        # A running trial that is past the usual length was let pass: it goes on to the full 1000.
        ([trial(1000, ended=True, baseline=True), trial(100, ended=True), trial(900, ended=False)], 3, 0.5),
        ([trial(1000, ended=True, baseline=True), trial(100, ended=True)], 2, 0.0),
    ],
)
def test_the_time_left(trials: list[dict[str, Any]], planned: int, left_s: float | None) -> None:
    got = time_left_s(trials, trials_planned=planned, elapsed_s=10.0)
    assert got == (None if left_s is None else pytest.approx(left_s))


def test_a_plan_of_one_configuration_never_says_less_than_no_time() -> None:
    over = [trial(1500, ended=False, baseline=True)]
    assert time_left_s(over, trials_planned=1, elapsed_s=10.0) == 0.0


def test_a_resumed_study_is_as_fast_as_it_is_now() -> None:
    """What was trained before took none of these seconds; what was cut off has yet to go on."""
    trials = [trial(1000, ended=True, baseline=True), trial(100, ended=True), trial(60, ended=False)]
    trials[2]["status"] = "interrupted"
    left_s = time_left_s(trials, trials_planned=4, elapsed_s=10.0, budgets_before=1.11)
    assert left_s == pytest.approx((40 + 100) / 50 * 10)
    went_back = time_left_s(trials, trials_planned=4, elapsed_s=10.0, budgets_before=1.2)
    assert went_back is None


def test_what_was_cut_off_has_not_ended(ledger: Ledger, study: Study) -> None:
    ledger.interrupt(NOW)
    view = StudyView(study=study, ledger=ledger, trials_planned=8, console=Console(file=io.StringIO()))
    assert view._progress_words(ledger.trials()).startswith("5/8 trials")


def test_the_readmes_picture_shows_what_runs_the_best_and_how_the_last_ended(tmp_path: Path) -> None:
    write_terminal(make_report_study(tmp_path / "plateau"), tmp_path / "terminal.svg")
    drawn = html.unescape((tmp_path / "terminal.svg").read_text()).replace("\xa0", " ")
    running, board, endings = (drawn.find(words) for words in ("tokens/s", "vs base", "of the budget: val loss"))
    assert 0 < running < board < endings
