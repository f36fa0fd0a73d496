"""A study fully decided from variables: pins, names, baselines, slots; and nothing written on the way."""

import io
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from results.study.atomic import write_document
from results.study.folder import Study, create_study, find_study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.cluster.study_storage import fetch_study
from search.commands.run_command import header_lines
from search.options import read_options
from search.setup.plan import Plan, check_worker_paths, largest_configs, load_for, make_plan, study_name
from search.setup.reopen import reopen
from search.setup.run_plan import held
from search.terminal.console import Preparing
from search.tune.history import KnownTrial, WarmStart, read_warm_start
from spaces.budget import Budget
from spaces.overrides import Settings, with_overrides
from spaces.read.load import load_space
from spaces.space import SearchSpace
from tests.documents import sound_document
from tests.rows import evaluation
from trainable.config import BEFORE, DOCUMENTED, TrialConfig
from trainable.errors import MachineError, UserError
from trainable.model.model_names import model_folder

MakePlan = Callable[..., Plan]


@pytest.fixture
def plan_of(text_file: Path) -> MakePlan:
    """Return a function that plans from NAME=value words, on the smoke space and the small text by default."""

    def plan(*words: str, kind: str = "search", **keywords: Any) -> Plan:
        given = ["SPACE=smoke", f"TRAINING_DATA_SOURCE={text_file}", "DEVICE=cpu", *words]
        return make_plan(read_options(given), kind=kind, progress=Preparing(Console(file=io.StringIO())), **keywords)

    return plan


def space_of(plan: Plan) -> SearchSpace:
    assert plan.space is not None
    return plan.space


def test_a_plan_of_the_smoke_space(plan_of: MakePlan, text_file: Path) -> None:
    plan = plan_of("CONCURRENCY=2")
    assert (plan.kind, space_of(plan).name, plan.configs) == ("search", "smoke", [])
    assert plan.name.startswith("smoke-")
    assert plan.document["settings"]["pins"] == {}
    assert list(plan.notes) == []
    assert plan.loaded.inputs.model_name == "tiny"
    assert plan.options.training_data_source == text_file
    assert plan.slots.count == 2
    assert plan.loaded.spec.protocol.block_size == space_of(plan).evaluation.block_size == 32
    assert plan.loaded.facts["corpus"]["train_tokens"] > plan.loaded.facts["corpus"]["val_tokens"] > 0
    assert not Path(os.environ["STUDIES_DIR"]).exists()


def test_how_trials_train_lies_in_the_study(plan_of: MakePlan) -> None:
    device = plan_of("COMPILE=0", "GRADIENT_CHECKPOINTING=1").document["device"]
    assert (device["compile"], device["gradient_checkpointing"]) == ("off", True)


def test_a_study_that_goes_on_elsewhere_says_what_differs(plan_of: MakePlan, tmp_path: Path) -> None:
    storage = tmp_path / "store"
    with held(plan_of("STUDY=moved")) as plan:
        run = PlannedRun(trial_id=0, config=plan.baseline, purpose="search", is_baseline=True)
        Ledger(plan.study).start_trial(run, started_at=datetime.now(UTC))
    study = plan.study

    def reopened(*words: str) -> Plan:
        return reopen(study, read_options(words), Preparing(Console(file=io.StringIO())), space=plan.space)

    # Who reopens a study need not hold it, and whoever does may be writing.
    (unfinished := study.path / ".x.tmp").touch()
    assert [*reopened().notes] == []
    assert unfinished.exists()
    document = study.document()
    # A study from before has a list of its trackers, of which nothing is read any more.
    document["trackers"] = {"OPTUNA_STORAGE": "postgresql://***@host/db", "WANDB": "a/b"}
    document["device"] |= {"type": "cuda", "name": "a GPU"}
    write_document(study.study_json, document)
    storage.mkdir()
    places, device = reopened(f"STORAGE={storage}").notes
    assert places == (
        f"a trial that was cut off begins again, unless its checkpoint is in {storage}/moved/checkpoints too: it was "
        f"saved in {study.path}/checkpoints"
    )
    assert device.startswith("the study ran on cuda (a GPU) and goes on on cpu (")
    with held(reopened(f"STORAGE={storage}")) as again:
        assert again.document == {**document, "storage": str(storage)}


def test_tensorboard_goes_on_by_itself_and_no_other_tracker(plan_of: MakePlan, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    with held(plan_of("STUDY=told", f"OPTUNA_STORAGE={path}", "TENSORBOARD=1")) as plan:
        study = plan.study

    def trackers(*words: str) -> tuple[str | None, bool]:
        again = reopen(study, read_options(words), Preparing(Console(file=io.StringIO())), space=plan.space).options
        return again.optuna_storage, again.tensorboard

    assert trackers() == (None, False)
    (study.path / "tensorboard").mkdir()
    assert trackers() == (None, True)
    assert trackers("TENSORBOARD=0") == (None, False)
    assert trackers(f"OPTUNA_STORAGE={path}") == (f"sqlite:///{path}", True)


def test_hyperparameters_in_the_environment_pin_them_and_the_header_says_so(plan_of: MakePlan) -> None:
    plan = plan_of("LEARNING_RATE=1e-3", "BATCH_SIZE=8", "SEED=4")
    assert plan.document["settings"]["pins"] == {"learning_rate": 1e-3, "batch_size": 8, "seed": 4}
    assert {parameter.name for parameter in space_of(plan).parameters}.isdisjoint(plan.document["settings"]["pins"])
    baseline = plan.baseline
    assert (baseline.learning_rate, baseline.batch_size, baseline.seed) == (1e-3, 8, 4)
    header = "\n".join((*header_lines(plan), *plan.notes))
    assert "pinned, for the baseline too: " in header
    assert "LEARNING_RATE=0.001" in header
    assert "BATCH_SIZE=8" in header
    assert "SEED" not in header
    assert "searched: learning_rate" not in header
    assert "searched: block_size choice [16, 32, 64]" in header


def test_training_steps_do_not_shorten_a_search(plan_of: MakePlan) -> None:
    plan = plan_of("TRAINING_STEPS=7")
    assert plan.budget.tokens == 12_288
    assert "TRAINING_STEPS is not read by a search" in plan.notes[0]


def test_use_lr_warmup_pins_the_schedule(plan_of: MakePlan) -> None:
    assert plan_of("USE_LR_WARMUP=False").document["settings"]["pins"] == {"lr_schedule": "constant"}
    assert plan_of("USE_LR_WARMUP=True").document["settings"]["pins"] == {"lr_schedule": "warmup_cosine"}


def test_trials_and_budget_are_the_variables(plan_of: MakePlan) -> None:
    plan = plan_of("TRIALS=9", "BUDGET_TOKENS=24576")
    assert space_of(plan).trials == 9
    assert plan.budget.tokens == 24_576
    assert plan.baseline.training_steps == 24_576 // 128


def test_a_baseline_by_name(plan_of: MakePlan) -> None:
    plan = plan_of("BASELINE=before", "BUDGET_TOKENS=65536")
    assert plan.document["baseline"]["name"] == "before"
    assert (plan.baseline.batch_size, plan.baseline.lr_schedule) == (8, "warmup_cosine")


def test_a_baseline_that_another_study_found(
    plan_of: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Budget(tokens=409_600).sized(DOCUMENTED)
    ledger = Ledger(create_study("earlier", sound_document("earlier")))
    now = datetime(2025, 11, 25, tzinfo=UTC)
    for trial_id, loss in ((0, 5.0), (1, 4.0)):
        config = found if trial_id == 0 else BEFORE
        ledger.start_trial(
            PlannedRun(trial_id=trial_id, purpose="search", is_baseline=trial_id == 0, config=config), started_at=now
        )
        ledger.add_metrics(trial_id, evaluation(1, loss), None)
        ledger.end_trial(trial_id, status="completed", verdict=None, ended_at=now)
    plan = plan_of("BASELINE=earlier", "BUDGET_TOKENS=65536")
    assert plan.document["baseline"]["name"] == "earlier trial 1"
    shared = ("batch_size", "block_size", "learning_rate", "lr_schedule", "dropout", "seed")
    baseline, before = asdict(plan.baseline), asdict(BEFORE)
    assert {name: baseline[name] for name in shared} == {name: before[name] for name in shared}


def test_a_study_without_a_completed_trial_is_no_baseline(plan_of: MakePlan) -> None:
    create_study("empty", sound_document("empty"))
    with pytest.raises(UserError, match="BASELINE=empty: study empty has no completed trial"):
        plan_of("BASELINE=empty")


def test_a_warm_start_without_a_loss_is_refused_before_anything_is_loaded(
    plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study("empty", sound_document("empty"))
    monkeypatch.setattr("search.setup.plan.load_for", None)
    with pytest.raises(UserError, match="study empty has no trial with a loss to learn from"):
        plan_of("WARM_START=empty")


def test_a_baseline_plan_is_the_baseline_and_what_it_is_compared_with(plan_of: MakePlan) -> None:
    plan = plan_of("BUDGET_TOKENS=24576", "COMPARE=before", kind="baseline")
    assert plan.name.startswith("baseline-")
    assert [config.batch_size for config in plan.configs] == [4, 8]
    assert plan.configs[0] == plan.baseline
    assert all(config.tokens_per_step * config.training_steps <= 24_576 for config in plan.configs)
    assert plan.largest == plan.configs[1]
    alone = plan_of(kind="baseline")
    assert alone.configs == [alone.baseline]


@pytest.mark.parametrize(
    ("space", "batch", "block"), [("plateau", 64, 256), ("smoke", 8, 64), ("before_after", 32, 256)]
)
def test_the_largest_configuration_is_that_of_the_space(space: str, batch: int, block: int) -> None:
    [largest] = largest_configs(load_space(space))
    assert (largest.batch_size, largest.block_size) == (batch, block)


def test_the_largest_configuration_trains_every_weight_in_full_precision_where_a_trial_may(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text(
        "trials = 3\nbudget.tokens = 409_600\nevaluation.tokens = 256\nbaseline.use_lora = true\n"
        'baseline.precision = "bf16"\nsearch.use_lora.choice = [true, false]\n'
        'search.precision.choice = ["bf16", "fp32"]\nsearch.learning_rate.log_uniform = [1e-6, 1e-2]\n'
        "baseline.dropout = 0.0\nsearch.dropout.uniform = [0.0, 0.2]\nsearch.grad_accum_steps.choice = [1, 2]\n"
    )
    [largest] = largest_configs(load_space(str(path)))
    assert (largest.use_lora, largest.precision, largest.dropout) == (False, "fp32", 0.2)
    assert largest.grad_accum_steps == 2
    [pinned] = largest_configs(with_overrides(load_space(str(path)), Settings(pins={"precision": "bf16"})))
    assert pinned.precision == "bf16"
    path.write_text(path.read_text().replace('["bf16", "fp32"]', '["fp16", "bf16"]'))
    [half] = largest_configs(load_space(str(path)))
    assert half.precision == "bf16"


def test_the_largest_configuration_has_adapters_of_every_layer_where_a_trial_may(
    plan_of: MakePlan, tmp_path: Path
) -> None:
    path = tmp_path / "adapters.toml"
    path.write_text(
        "trials = 3\nbudget.tokens = 409_600\nevaluation.tokens = 256\nbaseline.use_lora = true\n"
        'search.lora_targets.choice = ["all-linear", "c_attn,c_proj", "auto"]\n'
        "search.learning_rate.log_uniform = [1e-6, 1e-2]\n"
    )
    [largest] = largest_configs(load_space(str(path)))
    assert largest.lora_targets == "all-linear"
    targets = ("auto", "c_attn,c_proj", "c_attn")
    configs = [TrialConfig(use_lora=True, lora_targets=name) for name in targets]
    assert replace(plan_of(), configs=configs).largest == configs[1]


def test_sizes_that_never_meet_are_not_the_largest_configuration(plan_of: MakePlan, tmp_path: Path) -> None:
    """A large batch goes with short blocks only: preflight needs no memory for both."""
    path = tmp_path / "ladder.toml"
    path.write_text(
        "trials = 3\nbudget.tokens = 409_600\nevaluation.tokens = 256\nbaseline.batch_size = 8\n"
        "search.block_size.choice = [64, 128, 512]\nsearch.batch_size.choice = [8, 128]\n"
        "search.batch_size.when.block_size = [64, 128]\nsearch.learning_rate.log_uniform = [1e-6, 1e-2]\n"
    )
    shapes = {(one.batch_size, one.block_size) for one in largest_configs(load_space(str(path)))}
    assert shapes == {(128, 128), (8, 512)}
    largest = plan_of(f"SPACE={path}").largest
    assert (largest.batch_size, largest.block_size) == (128, 128)


def test_accumulation_makes_no_configuration_larger(plan_of: MakePlan) -> None:
    """Its micro-batches are in memory one at a time."""
    configs = [TrialConfig(batch_size=64), TrialConfig(batch_size=8, grad_accum_steps=16)]
    plan = plan_of()
    assert replace(plan, configs=configs).largest == configs[0]
    # Of an attribution's combinations of the same size.
    half = replace(configs[0], precision="bf16")
    assert replace(plan, configs=[half, configs[0]]).largest == configs[0]


def test_a_study_is_named_after_space_and_time_or_as_told(tmp_path: Path) -> None:
    stem, _, rest = study_name(read_options([]), "plateau").partition("-")
    assert stem == "plateau"
    assert len(rest) == len("1125-0310")
    assert study_name(read_options(["STUDY=mine"]), "plateau") == "mine"
    (tmp_path / "studies" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="study mine exists"):
        study_name(read_options(["STUDY=mine"]), "plateau")


def test_a_relative_model_folder_is_made_absolute(plan_of: MakePlan, tmp_path: Path, monkeypatch: Any) -> None:
    """Workers start in another folder."""
    from search.setup.inputs import check_inputs

    pretrained = model_folder("tiny")
    assert pretrained is not None
    shutil.copytree(pretrained, tmp_path / "model")
    (tmp_path / "text.txt").write_text("words " * 100)
    monkeypatch.chdir(tmp_path)
    variables = read_options(["GPT2_MODEL_NAME=./model", "TRAINING_DATA_SOURCE=text.txt"])
    inputs = check_inputs(variables, progress=lambda what, done_frac: None)
    assert inputs.model_name == str(tmp_path / "model")
    assert inputs.options.training_data_source == tmp_path / "text.txt"
    assert inputs.files == [tmp_path / "text.txt"]


@pytest.mark.parametrize("path", ["/o'brien/.venv/bin/python", '/a"b/ray', "/a\\b/ray"])
def test_a_path_that_rays_command_lines_do_not_carry_is_refused_by_name(path: str) -> None:
    with pytest.raises(MachineError, match="Ray cannot start workers from"):
        check_worker_paths("/fine/python", path)
    check_worker_paths("/mein Prüfstand (neu) $HOME/python")


def test_a_path_that_ray_cannot_use_is_refused_before_the_text_is_tokenized(
    plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/o'brien/python")
    monkeypatch.setattr("search.setup.plan.load_inputs", lambda *_, **__: pytest.fail("the text was tokenized"))
    with pytest.raises(MachineError, match="Ray cannot start workers from"):
        plan_of()


@pytest.mark.parametrize("place", ["here", "in the storage"])
def test_a_study_that_is_lost_as_soon_as_it_appears_has_its_warm_start(
    place: str, plan_of: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("STUDY=one", f"STORAGE={tmp_path / 'storage'}")
    space = plan.space
    assert space is not None
    point = space.baseline_params()
    told = KnownTrial(trial_id=-1, config=DOCUMENTED, point=point, status="completed", val_loss=5.0)
    warm_start = WarmStart(source="earlier", told=[told], first_points=[point])
    plan = replace(plan, warm_start=warm_start)

    def killed(study: Study) -> NoReturn:
        raise KeyboardInterrupt(study.name)

    monkeypatch.setattr("search.setup.run_plan.hold", killed)
    with pytest.raises(KeyboardInterrupt, match="one"), held(plan):
        pass
    if place == "in the storage":
        monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "another machine"))
        fetch_study("one", str(tmp_path / "storage"))
    assert read_warm_start(find_study("one") or plan.study, space) == warm_start


def test_rules_that_were_edited_in_a_study_are_refused_before_anything_is_loaded() -> None:
    preparing = Preparing(Console(file=io.StringIO()))
    with pytest.raises(UserError, match="unknown key 'median_stps'"):
        load_for({"stability": {"median_stps": 5}}, read_options([]), preparing)
