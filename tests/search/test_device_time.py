"""BUDGET_TIME: speeds are measured once, kept, and what follows gives every shape the same device time."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from results.attribution.attribution_runs import question_of_study
from results.export import export_env
from results.ranking import full_tokens
from results.study.atomic import write_document
from results.study.folder import Study, create_study, list_studies
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.commands import attribute_command, resume_command
from search.commands.attribute_command import _budget as attribution_budget
from search.commands.export_command import export_command
from search.commands.resume_command import resume_command as resume
from search.commands.run_command import header_lines
from search.options import read_options
from search.setup import plan as planning
from search.setup.plan import Plan, make_plan
from search.setup.reopen import reopen
from search.setup.run_plan import checked, cost_words
from search.setup.settings import planned_space
from search.setup.slots import measured_speeds
from search.setup.train_plan import length_asked, make_train_plan, with_winner_of
from search.terminal.console import Preparing, Terminal
from spaces.budget import Budget, Speeds, budget_of
from spaces.read.load import space_from_toml
from tests.rows import evaluation
from trainable.config import TrialConfig, config_from
from trainable.device.speed_probe import Probe
from trainable.errors import UserError

EVALUATION_S = 0.05
NOW = datetime(2026, 11, 29, tzinfo=UTC)
SPACE = """
description = "Shapes of different speeds, each for the same time"
[baseline]
from = "documented"
batch_size = 8
block_size = 32
learning_rate = 1e-3
[budget]
device_minutes = 0.02
[evaluation]
tokens = 256
count = 3
[scheduler]
name = "none"
[searcher]
name = "grid"
[search]
batch_size = { choice = [2, 8] }
"""


def step_s(shape: TrialConfig) -> float:
    return 2e-3 + 1e-5 * shape.tokens_per_step


class Planted:
    """Speeds as a probe would find them, and which shapes it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[TrialConfig]] = []

    def __call__(self, loaded: Any, slots: Any, shapes: Sequence[TrialConfig], *, known: Any, **others: Any) -> Speeds:
        step_of = {} if known is None else dict(known.step_s)
        self.asked.append([shape for shape in shapes if shape not in step_of])
        return Speeds(step_s={**{one: step_s(one) for one in shapes}, **step_of}, evaluation_s=EVALUATION_S)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    planted = Planted()
    monkeypatch.setattr(planning, "measured_speeds", planted)
    return planted


@pytest.fixture
def plan_of(text_file: Path) -> Callable[..., Plan]:
    def plan(*words: str, kind: str = "search", **keywords: Any) -> Plan:
        given = ["SPACE=smoke", f"TRAINING_DATA_SOURCE={text_file}", "DEVICE=cpu", "CONCURRENCY=1", *words]
        plan = make_plan(read_options(given), kind=kind, progress=silent(), **keywords)
        return plan if plan.with_speeds is None else plan.with_speeds(silent())

    return plan


def silent() -> Preparing:
    return Preparing(Console(file=io.StringIO()))


def device_s(config: TrialConfig, evaluations: int = 4) -> float:
    return config.training_steps * step_s(config) + evaluations * EVALUATION_S


def made(plan: Plan) -> Study:
    """The plan's study, with a completed trial of another shape that beat the baseline."""
    assert plan.space is not None
    study = create_study(plan.name, plan.document)
    ledger = Ledger(study)
    better = plan.space.config_for({**plan.space.baseline_params(), "batch_size": 8, "learning_rate": 1e-3})
    for trial_id, config in enumerate((plan.baseline, better)):
        run = PlannedRun(trial_id=trial_id, config=config, purpose="search", is_baseline=trial_id == 0)
        ledger.start_trial(run, started_at=NOW)
        tokens = config.training_steps * config.tokens_per_step
        ledger.add_metrics(
            trial_id,
            evaluation(config.training_steps, 5.0 - trial_id, tokens_seen=tokens, active_s=60.0),
            None,
        )
        ledger.end_trial(trial_id, status="completed", verdict=None, ended_at=NOW)
    ledger.flush()
    return study


def test_a_plan_measures_every_shape_once_and_keeps_what_it_found(
    plan_of: Callable[..., Plan], planted: Planted
) -> None:
    plan = plan_of("BUDGET_TIME=1m")
    assert plan.space is not None
    assert [len(shapes) for shapes in planted.asked] == [9]
    assert plan.budget == plan.space.budget == budget_of(json.loads(json.dumps(plan.document)))
    assert plan.document["settings"]["device_s"] == 60
    assert "4 trials of at most 1 min 00 s of device time, evaluated on the same 256" in " ".join(header_lines(plan))
    for batch_size in (2, 8):
        config = plan.space.config_for({**plan.space.baseline_params(), "batch_size": batch_size})
        assert 0.95 * 60 < device_s(config) <= 60
    assert planned_space(plan.document, "study.json")[0] == plan.space
    assert len(planted.asked) == 1


def test_nothing_is_measured_before_preflight_has_passed(
    text_file: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["SPACE=smoke", f"TRAINING_DATA_SOURCE={text_file}", "DEVICE=cpu", "CONCURRENCY=1", "BUDGET_TIME=1m"]
    plan, terminal = make_plan(read_options(words), kind="search", progress=silent()), Terminal(as_json=True)

    def failing(*values: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr("search.setup.run_plan.check_preflight", failing)
    with pytest.raises(SystemExit), checked(plan, terminal):
        pass
    assert (planted.asked, list_studies()) == ([], [])
    monkeypatch.setattr("search.setup.run_plan.check_preflight", lambda *values: None)
    with checked(plan, terminal) as held:
        assert len(planted.asked) == 1
        assert held.budget == budget_of(held.study.document()) != plan.budget


def test_baseline_and_what_is_compared_with_it_get_the_same_time(
    plan_of: Callable[..., Plan], planted: Planted
) -> None:
    plan = plan_of("BUDGET_TIME=5m", "COMPARE=before", kind="baseline")
    assert len(plan.configs) == 2
    assert all(0.95 * 300 < device_s(config) <= 300 for config in plan.configs)
    assert {one.batch_size for one in planted.asked[0]} == {4, 8}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["BUDGET_TIME=1m", "BUDGET_TOKENS=1M"], "BUDGET_TIME and BUDGET_TOKENS set the length of the same run"),
        (["STEPS=70"], "STEPS is the length of a winner's run. A search takes BUDGET_TOKENS or BUDGET_TIME."),
        (["BUDGET_TIME=soon"], "BUDGET_TIME='soon' is not a time of more than 0 and at most 10^6 minutes"),
        (["BUDGET_TIME=-1"], "BUDGET_TIME='-1' is not a time"),
        (
            ["BUDGET_TIME=1m", "ADDRESS=auto"],
            "BUDGET_TIME measures this machine's speed. On a cluster set BUDGET_TOKENS.",
        ),
        (["BUDGET_TIME=0.2s"], "spaces/smoke.toml with BUDGET_TIME=0.2s: as measured, a step of batch_size=8 x block"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    words: list[str], line: str, plan_of: Callable[..., Plan], planted: Planted
) -> None:
    with pytest.raises(UserError) as refused:
        plan_of(*words)
    assert str(refused.value).startswith(line)


def test_a_study_that_is_reopened_measures_nothing(plan_of: Callable[..., Plan], planted: Planted) -> None:
    plan = plan_of("BUDGET_TIME=1m", "STUDY=timed")
    study = made(plan)
    again = reopen(study, read_options(["DEVICE=cpu"]), silent())
    assert (again.budget, again.milestones(plan.baseline)) == (plan.budget, plan.milestones(plan.baseline))
    runs = [PlannedRun(trial_id=7, config=plan.baseline, purpose="confirmation", of_trial=0, attempt=1)] * 3
    assert cost_words(replace(again, slots=plan.slots), runs).endswith("1 at a time: about 3 min 00 s")
    assert len(planted.asked) == 1


def test_an_attribution_gives_every_combination_the_same_time(plan_of: Callable[..., Plan], planted: Planted) -> None:
    study = made(plan_of("BUDGET_TIME=1m", "STUDY=timed"))
    for words, expected_s in ((["STUDY=timed"], 60), (["STUDY=timed", "BUDGET_TIME=30s"], 30)):
        question = question_of_study(study, attribution_budget(study, read_options(words)))
        assert len(question.configs) == 4  # batch size, learning rate
        assert all(0.95 * expected_s < device_s(config) <= expected_s for config in question.configs.values())
    with pytest.raises(UserError, match=r"BUDGET_TIME=0.1s is less than one step of .* Raise BUDGET_TIME."):
        question_of_study(study, attribution_budget(study, read_options(["BUDGET_TIME=0.1s"])))
    assert len(planted.asked) == 1


def test_an_attribution_without_speeds_takes_tokens(plan_of: Callable[..., Plan]) -> None:
    study = made(plan_of("STUDY=counted"))
    with pytest.raises(UserError, match="BUDGET_TIME=1m: the budget is in tokens"):
        attribution_budget(study, read_options(["BUDGET_TIME=1m"]))
    assert attribution_budget(study, read_options(["BUDGET_TOKENS=9k"])).tokens == 9000


def test_a_larger_time_is_a_new_study_at_the_kept_speeds(
    plan_of: Callable[..., Plan], planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_of("BUDGET_TIME=1m", "STUDY=timed")
    made(first)
    taken: list[Plan] = []

    def run_new(plan: Plan, *others: Any) -> int:
        taken.append(plan)
        return 0

    monkeypatch.setattr(resume_command, "run_new", run_new)
    assert resume(read_options(["STUDY=timed", "BUDGET_TIME=2m", "CONCURRENCY=1"]), Terminal(as_json=True)) == 0
    # On more slots each is slower.
    assert resume(read_options(["STUDY=timed", "BUDGET_TIME=3m", "CONCURRENCY=2"]), Terminal(as_json=True)) == 0
    plan, elsewhere = (one.with_speeds(silent()) for one in taken if one.with_speeds is not None)
    assert len(planted.asked[2]) == len(planted.asked[0])
    assert elsewhere.slots.count == 2
    assert (plan.name, plan.is_new, plan.budget.device_s) == ("timed-2m", True, 120)
    assert plan.budget.speeds == first.budget.speeds
    assert planted.asked[1] == []
    assert 0.95 * 120 < device_s(plan.baseline) <= 120
    assert plan.warm_start is not None
    assert [(one.status, one.losses[-1]) for one in plan.warm_start.told] == [
        ("stopped", (round(plan.budget.tokens / 2), 5.0 - trial_id)) for trial_id in (0, 1)
    ]


def test_what_another_process_planned_before_the_study_is_held_counts(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(plan_of("TRIALS=2", "STUDY=extended"))

    @contextmanager
    def extended(study: Study) -> Iterator[None]:
        document = study.document()
        settings = {**document["settings"], "trials": 3}
        write_document(study.study_json, {**document, "trials_planned": 3, "settings": settings})
        yield

    def reopened(*values: Any, **others: Any) -> None:
        raise UserError("a third trial is run")

    monkeypatch.setattr(resume_command, "hold", extended)
    monkeypatch.setattr(resume_command, "reopen", reopened)
    with pytest.raises(UserError, match="a third trial is run"):
        resume(read_options(["STUDY=extended"]), Terminal(as_json=True))


@pytest.mark.parametrize(
    ("planned", "asked", "line"),
    [
        (
            "BUDGET_TIME=1m",
            "BUDGET_TOKENS=1M",
            "BUDGET_TOKENS=1M: study old gave its trials 1 min 00 s of",
        ),
        ("BUDGET_TOKENS=20k", "BUDGET_TIME=9m", "BUDGET_TIME=9m: study old gave its trials 20,000 training tokens"),
        ("BUDGET_TIME=1m", "BUDGET_TIME=30s", "BUDGET_TIME=30s: study old gave its trials 1 min 00 s of"),
        (
            "BUDGET_TOKENS=20k",
            "BUDGET_TOKENS=13k",
            "BUDGET_TOKENS=13k: study old gave its trials 20,000 training",
        ),
    ],
)
def test_a_study_goes_on_by_its_own_kind_of_budget(
    planned: str, asked: str, line: str, plan_of: Callable[..., Plan], planted: Planted
) -> None:
    made(plan_of(planned, "STUDY=old"))
    with pytest.raises(UserError) as refused:
        resume(read_options(["STUDY=old", asked]), Terminal(as_json=True))
    assert str(refused.value).startswith(line)


def test_the_winner_is_exported_with_its_own_steps_and_the_time_as_the_budget(
    plan_of: Callable[..., Plan], planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made(plan_of("BUDGET_TIME=1m", "STUDY=timed", "COMPILE=0", "GRADIENT_CHECKPOINTING=1"))
    winner = study.trials()[1]
    assert f"export TRAINING_STEPS={winner['training_steps']}\n" in export_env(study)
    longer = export_env(study, Budget(tokens=10 * full_tokens(winner)))
    assert f"export TRAINING_STEPS={10 * winner['training_steps']}\n" in longer
    exported = {}
    for words in ([], ["BUDGET_TIME=1m"], ["BUDGET_TIME=10m"], ["BUDGET_TOKENS=1M"]):
        for format_ in ("json", "toml"):
            capsys.readouterr()
            options = read_options(["STUDY=timed", f"FORMAT={format_}", *words])
            assert export_command(options, Terminal(as_json=False)) == 0
            exported["".join(words), format_] = capsys.readouterr().out
    assert exported["", "json"] == exported["BUDGET_TIME=1m", "json"]
    in_ten = TrialConfig(**json.loads(exported["BUDGET_TIME=10m", "json"])["hyperparameters"])
    assert 0.95 * 600 < device_s(in_ten) <= 600
    for asked, minutes in (("", 1), ("BUDGET_TIME=1m", 1), ("BUDGET_TIME=10m", 10)):
        space = space_from_toml(exported[asked, "toml"], name="exported", path="exported.toml")
        assert (space.budget.device_s, space.baseline.batch_size) == (60 * minutes, 8)
    in_tokens = space_from_toml(exported["BUDGET_TOKENS=1M", "toml"], name="exported", path="exported.toml")
    assert in_tokens.budget == Budget(tokens=1_000_000)
    assert length_asked(study, read_options(["STEPS=70"])) == Budget(tokens=70 * 8 * 32)
    # make train takes the winner to the same lengths.
    trained = {
        word: with_winner_of(read_options(["STUDY=timed", word])).hyperparameters["training_steps"]
        for word in ("BUDGET_TIME=10m", "BUDGET_TOKENS=1M", "STEPS=70", "TRAINING_STEPS=90")
    }
    assert list(trained.values()) == [in_ten.training_steps, 1_000_000 // (8 * 32), 70, 90]
    rates = with_winner_of(read_options(["STUDY=timed", "USE_LR_WARMUP=True"])).explicit_hyperparameters()
    assert (rates["lr_schedule"], rates.get("warmup_steps")) == ("warmup_cosine", None)
    for words, checkpointing in (([], True), (["GRADIENT_CHECKPOINTING=0"], False)):
        options = with_winner_of(read_options(["STUDY=timed", *words]))
        assert (options.compile, options.gradient_checkpointing) == ("off", checkpointing)


def test_a_time_is_no_budget_where_no_speed_was_measured(plan_of: Callable[..., Plan], text_file: Path) -> None:
    study = made(plan_of("STUDY=counted"))
    with pytest.raises(UserError, match="BUDGET_TIME=10m: the budget is in tokens"):
        export_command(read_options([f"STUDY={study.name}", "BUDGET_TIME=10m"]), Terminal(as_json=False))
    for word in ("BUDGET_TIME=10m", "BUDGET_TOKENS=1M", "STEPS=70"):
        with pytest.raises(UserError, match=r"stretches a study's winner .* any other run takes TRAINING_STEPS"):
            make_train_plan(read_options([word, f"TRAINING_DATA_SOURCE={text_file}"]), silent())


def test_an_attribution_that_was_cut_off_is_told_how_to_go_on(plan_of: Callable[..., Plan], planted: Planted) -> None:
    plan = plan_of("BUDGET_TIME=90s", "STUDY=timed")
    study = made(plan)
    question = question_of_study(study, plan.budget)
    assert attribute_command._again(plan, question, 3) == "make attribute STUDY=timed SEEDS=3 BUDGET_TIME=90s"


def test_a_shape_that_runs_out_of_memory_gets_a_time_and_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [TrialConfig(batch_size=batch_size) for batch_size in (64, 8, 16)]
    seen: list[int] = []
    total_s: list[float] = []

    def probes(spec: Any, configs: Sequence[TrialConfig], *, seconds: float, **others: Any) -> Any:
        total_s.append(3 * seconds)
        for config in configs:
            seen.append(config.batch_size)
            fits = config.batch_size < 64
            first_s = 0.4 if len(seen) == 1 else 0.1  # the machine was slow for once
            step_s, evaluation_s = first_s * config.batch_size, 0.5 / len(seen)
            measured = Probe(count=2, threads=1, tokens_per_s=1.0, step_s=step_s, evaluation_s=evaluation_s)
            yield measured if fits else Probe(count=2, threads=1)

    monkeypatch.setattr("trainable.device.speed_probe.probes", probes)
    loaded: Any = type("Loaded", (), {"spec": None})
    slots: Any = type("Slots", (), {"count_on_device": 2, "threads": 1})
    found = measured_speeds(loaded, slots, shapes, known=None, device_s=60.0, progress=silent())
    assert seen == [8, 16, 64] * 3
    assert [found.step_s[shape] for shape in shapes] == pytest.approx([6.4, 1.6, 1.6])
    assert found.evaluation_s == 0.5 / 8
    again = measured_speeds(loaded, slots, shapes, known=found, device_s=60.0, progress=silent())
    assert (again, seen) == (found, [8, 16, 64] * 3)
    for device_s in (100.0, 7200.0):
        measured_speeds(loaded, slots, shapes, known=None, device_s=device_s, progress=silent())
    assert total_s == pytest.approx([3.0, 3.0, 5.0, 10.0])
    with pytest.raises(UserError, match="no shape of the space trains here"):
        measured_speeds(loaded, slots, shapes[:1], known=None, device_s=60.0, progress=silent())


@pytest.fixture(scope="module")
def timed(run_here: Any, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real search by time, and the same study confirmed."""
    path = tmp_path_factory.mktemp("spaces") / "timed.toml"
    path.write_text(SPACE)
    searched = run_here("run", f"SPACE={path}", "STUDY=timed", "CONCURRENCY=2", "SKIP_PREFLIGHT=1", "--json")
    confirmed = run_here("confirm", "STUDY=timed", "TOP=1", "SEEDS=2", "CONCURRENCY=1")
    return searched, confirmed, Study(studies / "timed")


def test_a_real_search_gives_every_trial_the_same_measured_time(timed: Any) -> None:
    searched, confirmed, study = timed
    assert (searched.code, confirmed.code) == (0, 0), searched.stderr + confirmed.stderr
    assert "BUDGET_TIME: measuring the speed of 2 shapes, 2 at a time, at least 6.0 s ..." in searched.stderr
    document, rows = study.document(), study.trials()
    budget = budget_of(document)
    assert budget.speeds is not None
    assert {row["status"] for row in rows} == {"completed"}
    assert len({row["batch_size"] for row in rows}) == 2
    for row in rows:
        config = config_from(row)
        a_step_s = budget.speeds.seconds_a_step(config)
        # No other step fits: on a busy machine one may take a second.
        assert 0 <= 1.2 - row["optimizer_steps"] * a_step_s - 3 * budget.speeds.evaluation_s < a_step_s
        evaluated = [one["optimizer_steps"] for one in study.metrics() if one["trial_id"] == row["trial_id"]]
        milestones = budget.milestones(config, document["evaluation"]["milestones_tokens"])
        assert evaluated == [0, *(step for _, step in milestones)]
    confirmations = [row for row in rows if row["purpose"] == "confirmation"]
    steps = {row["trial_id"]: row["training_steps"] for row in rows}
    assert len(confirmations) == 4 or document["baseline"]["batch_size"] == 8
    assert all(row["training_steps"] == steps[row["of_trial"]] for row in confirmations)
    assert "measuring" not in confirmed.stderr + confirmed.stdout
    assert "budget 1.2 s of device time a trial" in (study.path / "report.md").read_text()
