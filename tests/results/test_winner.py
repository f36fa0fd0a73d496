"""Who won, in every state a study can be in; and that terminal, JSON, export and report name the same one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.attribution.attribute import attribute
from results.attribution.attribution_values import write_attribution
from results.attribution.design import changed_settings, coalitions
from results.export import export_env, export_json, export_toml
from results.report.facts.study_facts import report_facts
from results.report.page import markdown, report_html
from results.study.folder import Study, create_study
from results.study.lock import hold
from results.study.tables import TRIALS, write_table
from results.winner import (
    Winner,
    evidence_words,
    find_winner,
    headline,
    notes,
    to_json,
    warning_words,
    way_words,
    winner_of,
)
from search.commands import list_command
from search.options import read_options
from search.setup.finish import write_answer
from search.setup.train_plan import with_winner_of
from search.terminal.next_steps import Step, next_steps, plateau_block, remedy
from search.terminal.summary import verdict_lines
from spaces.read.load import load_space
from spaces.read.space_files import SPACES_DIRECTORY
from tests.fuzz.commands import run
from tests.results.confirmed import add_attempt
from trainable.config import BEFORE, DOCUMENTED, config_from, make_config
from trainable.errors import UserError

MakeTrial = Callable[..., dict[str, Any]]

NOISE = (0.0, 0.01, -0.01, 0.02, -0.02)
"""Of five fresh seeds, common to all runs on one."""
SMALL = (0.0, 0.001, -0.001, 0.002, -0.002)
"""Of a candidate on its own."""


def on_seeds(loss: float, scatter: float = 1.0) -> list[float]:
    return [loss + common + scatter * own for common, own in zip(NOISE, SMALL, strict=True)]


BASELINE = on_seeds(5.0, 0.0)
PROVEN = on_seeds(4.8)
LUCKY = on_seeds(4.99, 40.0)
WORSE = on_seeds(5.2)


@pytest.fixture
def searched(studies: Any, make_document: Callable[..., dict[str, Any]], make_trial: MakeTrial) -> Study:
    """The baseline at 5.0; the search's first is trial 1, then trial 2."""
    study = create_study("s", make_document("s"))
    trials = [
        make_trial(0, val_loss=5.0),
        make_trial(1, val_loss=4.5, batch_size=8),
        make_trial(2, val_loss=4.6, batch_size=16),
        make_trial(3, "stopped", 4.0, rung=0),
    ]
    write_table(study.trials_path, trials, TRIALS)
    return study


def ids(study: Study) -> tuple[int | None, int | None, int | None]:
    """Return the winner, the search's best and the proven best; all that names a winner must name the same."""
    winner = winner_of(study)
    facts, exported = report_facts(study)["answer"], json.loads(export_json(study))
    assert winner.trial is not None
    assert (
        winner.trial["trial_id"] == facts["winner"]["trial_id"] == exported["trial_id"] == to_json(winner)["trial_id"]
    )
    assert facts["headline"] == exported["headline"] == headline(winner)
    assert f"# study s, trial {winner.trial['trial_id']}, " in export_env(study)
    assert winner.trial["trial_id"] in winner.kept_checkpoints
    document = to_json(winner)
    return document["trial_id"], document["search_best"], document["proven_best"]


def add_trial(study: Study, row: dict[str, Any]) -> None:
    write_table(study.trials_path, [*study.trials(), row], TRIALS)


def test_nothing_started_or_completed(make_trial: MakeTrial) -> None:
    nothing = find_winner([])
    assert (nothing.standing, nothing.trial, headline(nothing)) == ("nothing_started", None, "No trial was started")
    none = find_winner([make_trial(0, "failed"), make_trial(1, "stopped", 4.0, rung=0), make_trial(2, "running", 4.0)])
    assert (none.standing, none.trial, none.search_best, none.difference) == ("nothing_completed", None, None, None)
    assert none.kept_checkpoints == {0}
    # A confirmation alone is no search.
    assert find_winner([make_trial(4, val_loss=4.0, purpose="confirmation", of_trial=1)]).standing == "nothing_started"


def test_the_baseline_alone_and_the_baseline_that_won(make_trial: MakeTrial) -> None:
    baseline = make_trial(0, val_loss=5.0)
    alone, won = find_winner([baseline]), find_winner([baseline, make_trial(1, val_loss=5.1)])
    assert (alone.standing, won.standing) == ("baseline_alone", "baseline")
    assert alone.trial == won.trial == won.search_best == baseline
    assert (won.difference, won.search_difference, notes(won)) == (None, None, [])
    assert headline(won) == "The baseline is the best: no trial beat it"
    # Ties go to the baseline.
    assert find_winner([make_trial(1, val_loss=5.0), baseline]).trial == baseline


@pytest.mark.parametrize("status", ["running", "unstable", "interrupted", None])
def test_a_baseline_that_did_not_complete_is_no_measure(make_trial: MakeTrial, status: str | None) -> None:
    baseline = [make_trial(0, status, 3.0)] if status else []
    winner = find_winner([*baseline, make_trial(1, val_loss=4.5)])
    assert (winner.standing, winner.difference, winner.baseline_val_loss) == ("no_comparison", None, None)
    assert winner.trial is not None
    assert winner.trial["trial_id"] == 1


def test_a_baseline_that_broke_in_the_search_is_a_measure_on_fresh_seeds(
    searched: Study, make_trial: MakeTrial
) -> None:
    rows = [make_trial(0, "unstable"), make_trial(1, val_loss=4.5, batch_size=8)]
    write_table(searched.trials_path, rows, TRIALS)
    add_attempt(searched, {0: ["unstable"] * 5, 1: PROVEN})
    assert winner_of(searched).standing == "no_comparison"
    add_attempt(searched, {0: BASELINE, 1: LUCKY})
    assert headline(winner_of(searched)) == (
        "Trial 1 came first in the search; that it is better than the baseline is not proven"
    )
    add_attempt(searched, {0: BASELINE, 1: PROVEN})
    assert ids(searched) == (1, 1, 1)
    assert evidence_words(winner_of(searched)) in verdict_lines(winner_of(searched))


def start_at(study: Study, loss: float | None) -> Winner:
    study.study_json.write_text(json.dumps({**study.document(), "start": {"val_loss": loss, "train_loss": loss}}))
    return winner_of(study)


def test_the_start_stands_in_every_answer(searched: Study) -> None:
    winner = start_at(searched, 5.25)
    assert way_words(winner) == "start 5.2500 → baseline 5.0000 → best 4.5000"
    assert (winner.worse_than_start, warning_words(winner)) == (False, None)
    exported, answer = json.loads(export_json(searched)), report_facts(searched)["answer"]
    for document in (exported, to_json(winner), answer):
        assert (document["start_val_loss"], document["worse_than_start"]) == (5.25, False)
    assert "# start 5.2500 → baseline 5.0000 → best 4.5000\n" in export_env(searched)
    assert answer["way"] in markdown(report_facts(searched))
    assert verdict_lines(winner)[1] == answer["way"]
    assert warning_words(winner) is None


@pytest.mark.parametrize(("start", "what", "difference"), [(4.5, "no better", "+0.0000"), (4.25, "worse", "+0.2500")])
def test_a_best_that_is_not_below_the_start_is_said_in_red(
    searched: Study, start: float, what: str, difference: str
) -> None:
    winner = start_at(searched, start)
    losses = f"its val loss starts at {start:.4f} and ends at 4.5000, {difference} nats/token"
    said = f"trial 1 makes the model {what}: {losses}"
    assert warning_words(winner) == said
    assert to_json(winner)["worse_than_start"] is True
    assert json.loads(export_json(searched))["worse_than_start"] is True
    assert list_command._entry(searched)["worse_than_start"] is True
    assert f"# {said}\n" in export_env(searched)
    capital = f"T{said[1:]}."
    assert f'<p class="bad">{capital}</p>' in report_html(report_facts(searched), {})
    assert f"Warning: {said}." in markdown(report_facts(searched))
    first, *others = [step.command for step in next_steps(searched)]
    assert first == "make diagnose TARGET=s"
    assert not any("make model" in command or "make train" in command for command in others)


def test_of_a_baseline_that_won_the_way_ends_with_it(make_trial: MakeTrial) -> None:
    baseline = make_trial(0, val_loss=5.0)
    assert way_words(find_winner([baseline], start_val_loss=5.5)) == "start 5.5000 → baseline 5.0000"
    unstable = [make_trial(0, "unstable"), make_trial(1, val_loss=4.5)]
    assert way_words(find_winner(unstable, start_val_loss=5.5)) == "start 5.5000 → best 4.5000"
    assert way_words(find_winner([baseline])) is None
    assert warning_words(find_winner([baseline], start_val_loss=4.9)) == (
        "the baseline makes the model worse: its val loss starts at 4.9000 and ends at 5.0000, +0.1000 nats/token"
    )
    assert not find_winner([make_trial(0, "running", 6.0)], start_val_loss=5.0).worse_than_start


def test_weights_that_are_no_numbers_have_no_start(searched: Study) -> None:
    winner = start_at(searched, None)
    assert (winner.start_val_loss, way_words(winner), winner.worse_than_start) == (None, None, False)


def test_the_best_of_the_search_is_unproven(searched: Study) -> None:
    assert ids(searched) == (1, 1, None)
    winner = winner_of(searched)
    assert (winner.standing, winner.difference, winner.attempt, winner.verdict) == ("unproven", -0.5, None, None)
    assert evidence_words(winner) == "one seed each, so not proven yet"
    assert notes(winner) == []


def test_a_lead_too_small_for_four_digits_is_not_said_to_be_none(searched: Study, make_trial: MakeTrial) -> None:
    rows = [make_trial(0, val_loss=4.8729), make_trial(1, val_loss=4.8729 - 3.8e-5, batch_size=8)]
    write_table(searched.trials_path, rows, TRIALS)
    winner = winner_of(searched)
    assert headline(winner) == "Trial 1 beat the baseline by 3.8e-05 nats/token"
    assert verdict_lines(winner)[-1].startswith("3.8e-05 nats/token lower on the same held-out tokens")


def test_a_difference_that_is_the_same_on_every_seed_has_no_interval(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: [loss - 0.1 for loss in BASELINE]})
    facts = report_facts(searched)
    page, words = report_html(facts, {}), evidence_words(winner_of(searched))
    assert words.endswith("; the difference is the same on each, so that they say no more than one")
    assert "without bounds" not in page + markdown(facts)


@pytest.mark.parametrize("completed", [0, 1, 2])
def test_runs_that_did_not_complete_are_counted_the_same_everywhere(searched: Study, completed: int) -> None:
    broken = ["unstable", "out_of_memory", "unstable"][completed:]
    add_attempt(searched, {0: BASELINE[:3], 1: [*PROVEN[:completed], *broken]})
    winner = winner_of(searched)
    words = f"not proven with 3 seeds; it did not complete on {3 - completed} of 3 seeds"
    assert evidence_words(winner).startswith(words)
    assert winner.standing == "unproven"
    facts = report_facts(searched)
    assert f"attempt 1: {words}." in markdown(facts)
    assert f"<td>{completed} of 3</td>" in report_html(facts, {})
    assert json.loads(export_json(searched))["seeds"] == completed


def test_the_best_of_the_search_is_proven(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: PROVEN})
    assert ids(searched) == (1, 1, 1)
    winner = winner_of(searched)
    assert (winner.standing, to_json(winner)["attempt"]) == ("proven", 1)
    assert winner.difference == pytest.approx(-0.2)
    assert winner.search_difference == -0.5
    assert headline(winner) == "Trial 1 is better than the baseline by 0.2000 nats/token"
    assert evidence_words(winner).startswith("better than the baseline on 5 fresh seeds; interval -0.20")
    assert verdict_lines(winner)[-1].startswith("0.5000 nats/token lower in the search, on the same held-out tokens")
    assert notes(winner) == []


def test_the_proven_one_is_not_the_searchs_best(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: LUCKY, 2: PROVEN})
    assert ids(searched) == (2, 1, 2)
    (note,) = notes(winner_of(searched))
    assert note.startswith("trial 1 came first in the search, val loss 4.5000 on one seed; not proven with 5 seeds")


def test_the_searchs_best_is_proven_worse(searched: Study, make_trial: MakeTrial) -> None:
    add_attempt(searched, {0: BASELINE, 1: WORSE})
    assert ids(searched) == (2, 1, None)
    assert winner_of(searched).standing == "unproven"
    assert notes(winner_of(searched)) == [
        "trial 1 came first in the search, val loss 4.5000 on one seed; worse than the baseline on 5 fresh seeds"
    ]
    add_attempt(searched, {0: BASELINE, 2: WORSE})
    assert ids(searched) == (0, 1, None)
    assert headline(winner_of(searched)) == (
        "The baseline is the best: trial 1 came first in the search and is proven worse"
    )


def test_a_confirmation_that_was_interrupted_changes_no_answer(searched: Study) -> None:
    add_attempt(searched, {0: [*BASELINE[:4], None], 1: [*PROVEN[:3], "failed", None]})
    assert ids(searched) == (1, 1, None)
    winner = winner_of(searched)
    assert (winner.standing, winner.under_way) == ("unproven", (7, 10))
    assert notes(winner) == ["a confirmation is under way: 7 of 10 runs have ended"]
    assert winner.kept_checkpoints == {0, 1}


def test_a_proof_outlives_a_later_attempt_that_proves_nothing_or_was_cut_off(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: PROVEN})
    add_attempt(searched, {0: BASELINE, 1: LUCKY})
    assert ids(searched) == (1, 1, 1)
    assert to_json(winner_of(searched))["attempt"] == 1
    add_attempt(searched, {0: [5.0, None], 1: [None, None]})
    assert ids(searched) == (1, 1, 1)
    winner = winner_of(searched)
    assert (to_json(winner)["attempt"], winner.under_way) == (1, (1, 4))


def test_a_better_trial_of_an_extended_search_is_told_beside_the_proven_one(
    searched: Study, make_trial: MakeTrial
) -> None:
    add_attempt(searched, {0: BASELINE, 1: PROVEN})
    add_trial(searched, make_trial(40, val_loss=4.3, batch_size=4))
    assert ids(searched) == (1, 40, 1)
    winner = winner_of(searched)
    assert notes(winner) == ["trial 40 came first in the search, val loss 4.3000 on one seed, not confirmed yet"]
    assert winner.kept_checkpoints == {0, 1, 40}
    # Proven too, and by more.
    add_attempt(searched, {0: BASELINE, 40: on_seeds(4.7), 1: PROVEN})
    assert ids(searched) == (40, 40, 40)
    winner = winner_of(searched)
    assert (to_json(winner)["attempt"], notes(winner)) == (2, [])


def test_of_two_proven_ones_the_larger_difference_wins(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: PROVEN, 2: on_seeds(4.7)})
    assert ids(searched) == (2, 1, 2)


def test_a_trial_proven_better_once_and_worse_once_is_out(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: PROVEN})
    add_attempt(searched, {0: BASELINE, 1: WORSE})
    assert ids(searched) == (2, 1, None)


def test_one_trial_alone_came_first_in_the_search(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: WORSE, 2: LUCKY})
    assert ids(searched) == (2, 1, None)
    assert headline(winner_of(searched)) == (
        "Trial 2 is the best of the search that is not proven worse; that it is better than the baseline is not proven"
    )


def test_a_baseline_that_won_on_fresh_seeds_says_so_everywhere(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: WORSE, 2: WORSE})
    assert ids(searched) == (0, 1, None)
    assert evidence_words(winner_of(searched)).startswith("trial 1 is worse than the baseline on 5 fresh seeds; inter")
    assert "; this is the baseline: trial 1 came first in the search and is proven worse\n" in export_env(searched)


def test_what_fresh_seeds_said_of_the_best_trial_stands_beside_a_baseline_that_won(
    searched: Study, make_trial: MakeTrial
) -> None:
    rows = [make_trial(0, val_loss=4.0), make_trial(1, val_loss=4.5, batch_size=8), make_trial(2, val_loss=4.6)]
    write_table(searched.trials_path, rows, TRIALS)
    assert evidence_words(winner_of(searched)) == "one seed each, so nothing is claimed"
    add_attempt(searched, {0: BASELINE, 1: LUCKY})
    assert evidence_words(winner_of(searched)).startswith("trial 1: not proven with 5 seeds; ")
    assert headline(winner_of(searched)) == "The baseline is the best: no trial beat it"
    add_attempt(searched, {0: BASELINE, 1: WORSE})
    assert evidence_words(winner_of(searched)).startswith("trial 1 is worse than the baseline on 5 fresh seeds; inter")
    assert notes(winner_of(searched)) == []


def test_a_proven_trial_that_was_behind_in_the_search_is_not_called_lower_there(
    searched: Study, make_trial: MakeTrial
) -> None:
    add_trial(searched, make_trial(40, val_loss=5.1, batch_size=4))
    add_attempt(searched, {0: BASELINE, 1: LUCKY, 2: LUCKY, 40: PROVEN})
    assert ids(searched) == (40, 1, 40)
    assert any(line.startswith("0.1000 nats/token higher") for line in verdict_lines(winner_of(searched)))


def test_a_run_of_train_has_no_baseline_to_miss(searched: Study, make_trial: MakeTrial) -> None:
    run = make_trial(0, val_loss=4.5, purpose="train", is_baseline=False)
    write_table(searched.trials_path, [run], TRIALS)
    assert "# val_loss 4.5000 nats/token\n" in export_env(searched)
    # make train STUDY=s would be refused: the name is taken.
    trains = report_facts(searched)["answer"]["export"]
    assert trains.startswith("make train BATCH_SIZE=")
    assert "STUDY=" not in trains


def test_the_proof_is_of_as_many_trials_as_have_completed(searched: Study, make_trial: MakeTrial) -> None:
    assert next_steps(searched)[0].purpose == "prove it: train the best two and the baseline again on fresh seeds"
    rows = [
        make_trial(0, val_loss=5.0),
        make_trial(1, val_loss=4.5, batch_size=8),
        make_trial(2, "stopped", 4.9, rung=0),
    ]
    write_table(searched.trials_path, rows, TRIALS)
    document = {**searched.document(), "trials_planned": 3}
    searched.study_json.write_text(json.dumps(document))
    assert next_steps(searched)[0].purpose == "prove it: train it and the baseline again on fresh seeds"


@pytest.mark.parametrize(("changes", "is_asked"), [({}, False), ({"batch_size": 8, "grad_accum_steps": 2}, True)])
def test_which_of_the_settings_did_it_is_not_asked_of_a_single_one(
    searched: Study, make_trial: MakeTrial, changes: dict[str, Any], is_asked: bool
) -> None:
    """Six runs named the only setting that was changed; where none was, the printed step was refused."""
    document = {**searched.document(), "trials_planned": 2}
    for single in ({"learning_rate": 3e-4}, {"seed": 1}):
        rows = [make_trial(0, val_loss=5.0), make_trial(1, val_loss=4.5, **single, **changes)]
        write_table(searched.trials_path, rows, TRIALS)
        searched.study_json.write_text(json.dumps(document))
        asked = any("make attribute" in step.command for step in next_steps(searched))
        assert asked is (is_asked and "seed" not in single)


def test_what_is_proven_to_have_cost_the_winner_something_can_be_trained_without(
    searched: Study, make_trial: MakeTrial
) -> None:
    """The next step after an attribution: what is taken back has the baseline's values, and as many tokens."""
    schedule = {"lr_schedule": "warmup_cosine", "warmup_steps": 20, "training_steps": 200}
    changed = {"batch_size": 8, "block_size": 256, **schedule}
    write_table(searched.trials_path, [make_trial(0, val_loss=5.0), make_trial(1, val_loss=4.5, **changed)], TRIALS)
    searched.study_json.write_text(json.dumps({**searched.document(), "trials_planned": 2}))
    baseline, own = (config_from(row) for row in searched.trials())
    settings = changed_settings(baseline, own)
    assert [setting.name for setting in settings] == ["batch_size", "block_size", "schedule"]
    effects = (-0.6, 0.1, 0.02)
    for seeds, is_proven in ((1, False), (3, True)):
        losses: dict[Any, dict[int, float | None]] = {
            some: {seed: 5.0 + 0.01 * seed + sum(effects[change] for change in some) for seed in range(seeds)}
            for some in coalitions(3)
        }
        for seed in range(seeds):  # no two seeds alike, or there would be no interval
            losses[frozenset({2})][seed] = 5.02 + 0.06 * (seed % 2)
            losses[frozenset({1})][seed] = 5.1 + 0.011 * seed
        write_attribution(searched, attribute(losses, settings, before_name="baseline", after_name="trial 1"))
        steps = [step for step in next_steps(searched) if "without" in step.purpose]
        assert len(steps) == is_proven
    tokens = searched.document()["budget_tokens"]
    assert steps[0].command == f"make train STUDY=s BLOCK_SIZE=128 WARMUP_STEPS=40 TRAINING_STEPS={tokens // (8 * 128)}"
    assert steps[0].purpose == "train it without block_size, which cost it 0.0987 nats/token"
    options = with_winner_of(read_options(steps[0].command.split()[2:]))
    trained = make_config(DOCUMENTED, options.explicit_hyperparameters())
    assert (trained.batch_size, trained.block_size, trained.lr_schedule) == (8, 128, "warmup_cosine")


def test_a_search_around_a_baseline_alone_fits_its_space_and_model(
    searched: Study, make_trial: MakeTrial, tmp_path: Path
) -> None:
    write_table(searched.trials_path, [make_trial(0, val_loss=5.0, purpose="baseline")], TRIALS)
    own, small = tmp_path / "my own.toml", tmp_path / "small"
    own.touch()
    small.mkdir()
    (small / "config.json").write_text('{"n_positions": 128}')
    plateau = str(SPACES_DIRECTORY / "plateau.toml")
    assert max(load_space("plateau").domain("block_size").examples()) == BEFORE.block_size  # type: ignore[union-attr]
    assert [plateau_block(model) for model in (str(small), "tiny", "nobody/nothing")] == ["128", None, None]
    for path, model, pins, words in (
        ("", "tiny", {}, "SPACE=plateau"),
        (plateau, "tiny", {"block_size": 64, "dropout": 0.0}, "SPACE=plateau BLOCK_SIZE=64"),
        (plateau, str(small), {}, "SPACE=plateau BLOCK_SIZE=128"),
        (str(own), str(small), {}, f"'SPACE={own}'"),
    ):
        document = {**searched.document(), "kind": "baseline", "trials_planned": 1, "settings": {"pins": pins}}
        document |= {"space": {**document["space"], "path": path}, "model": model}
        searched.study_json.write_text(json.dumps(document))
        of_model = "" if model == "tiny" else f" GPT2_MODEL_NAME={model}"
        assert next_steps(searched)[-1].command == f"make search {words} BASELINE=s{of_model}"


@pytest.mark.parametrize(("budget", "longer"), [({}, "BUDGET_TOKENS=4096000"), ({"device_s": 90.0}, "BUDGET_TIME=15m")])
def test_after_a_search_of_the_schedule_comes_the_long_run(
    searched: Study, make_trial: MakeTrial, budget: dict[str, float], longer: str
) -> None:
    document = searched.document()
    document["space"]["name"] = "schedule"
    if budget:
        shape = {"batch_size": 32, "block_size": 128, "step_s": 0.1}
        document["device_time"] = {**budget, "evaluations": 4, "evaluation_s": 0.1, "shapes": [shape]}
    searched.study_json.write_text(json.dumps(document))
    for rows in (searched.trials(), [make_trial(0, val_loss=4.0), *searched.trials()[1:]]):
        write_table(searched.trials_path, rows, TRIALS)  # a trial came first, then the baseline
        commands = [step.command for step in next_steps(searched)]
        assert f"make train STUDY=s {longer}" in commands
        assert not any("SPACE=schedule" in command for command in commands)


def test_a_baseline_and_what_ran_beside_it_have_the_next_steps_of_a_search(
    searched: Study, make_trial: MakeTrial
) -> None:
    """But for more trials, which it cannot run."""
    searched.study_json.write_text(json.dumps({**searched.document(), "kind": "baseline", "trials_planned": 2}))
    for beside, command in ((4.5, "make confirm STUDY=s"), (5.5, "make diagnose TARGET=s")):
        losses = enumerate((5.0, beside))
        rows = [make_trial(number, val_loss=loss, batch_size=8 + number, purpose="baseline") for number, loss in losses]
        write_table(searched.trials_path, rows, TRIALS)
        commands = [step.command for step in next_steps(searched)]
        assert commands[0] == command
        assert not any("TRIALS=" in one for one in commands)


def test_while_a_search_runs_its_end_is_what_is_waited_for(searched: Study) -> None:
    assert remedy(searched).startswith(" Prove it: ")
    with hold(searched), pytest.raises(UserError, match=r"study s is held by process \d+ on .* Wait for it or stop it"):
        remedy(searched)


@pytest.mark.parametrize(
    "words", [("export", "STUDY=s"), ("train", "STUDY=s", "BUDGET_TOKENS=50k"), ("model", "STUDY=s")]
)
def test_a_search_without_a_winner_is_refused_with_its_next_step(
    words: tuple[str, ...], searched: Study, make_trial: MakeTrial
) -> None:
    write_table(searched.trials_path, [make_trial(0, "interrupted")], TRIALS)
    searched.study_json.write_text(json.dumps({**searched.document(), "trials_planned": 3}))
    with pytest.raises(UserError, match=r"no completed trial.*\. Go on where it was interrupted: make resume STUDY=s$"):
        run(*words)


def test_a_run_of_train_without_an_end_is_refused_with_its_next_step(searched: Study, make_trial: MakeTrial) -> None:
    """Of one that was unstable `make train CHECKPOINT_PATH=...` was printed, which cannot be typed."""
    write_table(searched.trials_path, [make_trial(0, "unstable", purpose="train")], TRIALS)
    searched.study_json.write_text(json.dumps({**searched.document(), "kind": "train", "trials_planned": 1}))
    with pytest.raises(UserError, match=r"s is of kind train\. Find what is wrong .*: make diagnose TARGET=s/0$"):
        run("resume", "STUDY=s")


def test_a_proof_of_a_trial_that_is_gone_names_its_study(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: LUCKY})
    searched.trials_path.unlink()
    with pytest.raises(UserError, match=r"^study s: confirmation\.json is of trial 0, which trials\.parquet lacks"):
        winner_of(searched)


def test_a_next_search_names_the_model_and_text_that_are_not_the_defaults(searched: Study) -> None:
    def command() -> str:
        return next(step.command for step in next_steps(searched) if "SPACE=schedule" in step.command)

    assert command() == "make search SPACE=schedule BASELINE=s"
    own = {"model": "/my models/a$b", "data_source": "/texts/q.jsonl", "documents": "jsonl:text"}
    searched.study_json.write_text(json.dumps({**searched.document(), **own}))
    words = "'GPT2_MODEL_NAME=/my models/a$$b' TRAINING_DATA_SOURCE=/texts/q.jsonl DOCUMENTS=jsonl:text"
    assert command() == f"make search SPACE=schedule BASELINE=s {words}"
    assert f"# to search it with this study's model and text: make search SPACE=... {words}\n" in export_toml(searched)


@pytest.mark.parametrize(("searcher", "has_more"), [("random", True), ("grid", False)])
def test_more_trials_are_suggested_only_where_there_are_more(
    searched: Study, make_trial: MakeTrial, searcher: str, has_more: bool
) -> None:
    searched.study_json.write_text(json.dumps({**searched.document(), "searcher": {"name": searcher}}))
    rows = [make_trial(0, val_loss=5.0), *(make_trial(one, val_loss=5.5, batch_size=8 * one) for one in (1, 2, 3))]
    write_table(searched.trials_path, rows, TRIALS)
    commands = [step.command for step in next_steps(searched)]
    assert ("make resume STUDY=s TRIALS=+4" in commands) is has_more
    assert any("TRIALS" in command for command in commands) is has_more


def test_a_trial_that_came_first_after_another_was_proven_is_to_be_confirmed_next(
    searched: Study, make_trial: MakeTrial
) -> None:
    add_attempt(searched, {0: BASELINE, 1: PROVEN, 2: LUCKY})
    planned = [*searched.trials(), make_trial(40, val_loss=4.5, learning_rate=3e-4)]
    write_table(searched.trials_path, planned, TRIALS)
    assert "confirm" not in next_steps(searched)[0].command
    better = [*planned[:-1], make_trial(40, val_loss=4.2, learning_rate=3e-4)]
    write_table(searched.trials_path, better, TRIALS)
    confirm = Step(command="make confirm STUDY=s", purpose="confirm trial 40, which came first in the search")
    assert next_steps(searched)[0] == confirm
    add_attempt(searched, {0: BASELINE, 40: LUCKY})
    assert "confirm" not in next_steps(searched)[0].command


def test_more_trials_are_the_next_step_only_while_configurations_are_left(
    searched: Study, make_trial: MakeTrial
) -> None:
    write_table(searched.trials_path, [make_trial(0, val_loss=4.0), make_trial(1, val_loss=4.5)], TRIALS)
    document = {**searched.document(), "trials_planned": 2}
    searched.study_json.write_text(json.dumps(document))
    assert next_steps(searched)[0].command == "make resume STUDY=s TRIALS=+2"
    for over in ({"searcher": {"name": "grid"}}, {"exhausted": True}):
        searched.study_json.write_text(json.dumps({**document, **over}))
        assert not any("TRIALS=" in step.command for step in next_steps(searched))


def test_a_winner_that_was_behind_on_fresh_seeds_is_to_be_proven_worse(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: on_seeds(5.01, 10.0)})
    more, confirm, *_ = next_steps(searched)
    assert more.command == "make resume STUDY=s TRIALS=+4"
    needed = winner_of(searched).verdict.seeds_needed  # type: ignore[union-attr]
    # It was the only candidate, and of two each would need more seeds.
    assert confirm == Step(
        command=f"make confirm STUDY=s TOP=1 SEEDS={needed}", purpose=f"prove it worse with about {needed} seeds"
    )


def test_two_candidates_are_confirmed_again_as_two(searched: Study) -> None:
    add_attempt(searched, {0: BASELINE, 1: on_seeds(4.98, 20.0), 2: LUCKY})
    needed = winner_of(searched).verdict.seeds_needed  # type: ignore[union-attr]
    assert next_steps(searched)[0].command == f"make confirm STUDY=s SEEDS={needed}"


def test_of_a_renamed_study_all_files_name_the_new_one(searched: Study) -> None:
    write_answer(searched)
    renamed = Study(searched.path.rename(searched.path.with_name("t")))
    assert write_answer(renamed)["study"]["name"] == "t"
    assert renamed.best_env.read_text() == export_env(renamed)
    assert renamed.best_json.read_text() == export_json(renamed)
    assert "export EXPORTED_FROM=t\n" in renamed.best_env.read_text()
