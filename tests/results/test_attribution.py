"""Tasks whose truth is known, additive and interacting, in full and sampled; unstable runs; words and file."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations, permutations
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from results.attribution.attribute import attribute, interaction_weights, shapley_weights
from results.attribution.attribution_runs import make_question
from results.attribution.attribution_values import (
    Attribution,
    Estimate,
    from_json,
    load_attribution,
    to_json,
    write_attribution,
)
from results.attribution.design import Coalition, Setting, changed_settings, coalitions, config_of
from results.attribution.sentences import did_it_words, render, summary_lines
from results.study.folder import Study
from spaces.budget import Budget
from tests.rows import trial_row
from trainable.config import BEFORE, DOCUMENTED, TrialConfig
from trainable.errors import UserError

Losses = dict[Coalition, dict[int, float | None]]

MAIN = (-0.30, 0.08, -0.10, 0.0, 0.20, -0.05, 0.01)
ONE_INTERACTION = {(0, 2): -0.20}
ALL = frozenset(range(4))


def truth(k: int, interactions: Mapping[tuple[int, int], float]) -> Callable[[Coalition], float]:
    def loss(coalition: Coalition) -> float:
        together = sum(effect for two, effect in interactions.items() if coalition.issuperset(two))
        return 6.7 + sum(MAIN[change] for change in coalition) + together

    assert all(max(two) < k for two in interactions)
    return loss


def true_shapley(k: int, interactions: Mapping[tuple[int, int], float]) -> list[float]:
    return [MAIN[i] + sum(effect / 2 for two, effect in interactions.items() if i in two) for i in range(k)]


def make_settings(k: int) -> list[Setting]:
    return [Setting(name=f"s{i}", fields=(), before="old", after="new") for i in range(k)]


def make_losses(
    k: int,
    interactions: Mapping[tuple[int, int], float] | None = None,
    *,
    seeds: int = 3,
    noise: float = 0.0,
    of: Sequence[Coalition] | None = None,
    rng_seed: int = 0,
) -> Losses:
    """Each seed moves every loss alike, and each run has noise of its own."""
    rng, loss = np.random.default_rng(rng_seed), truth(k, interactions or {})
    common = rng.normal(0, 0.05, seeds)
    return {
        c: {seed: loss(c) + common[seed] + noise * float(rng.standard_normal()) for seed in range(seeds)}
        for c in (of or coalitions(k))
    }


def shapley_means(attribution: Attribution) -> list[float]:
    return [effect.shapley.mean for effect in attribution.effects if effect.shapley is not None]


def alone_means(attribution: Attribution) -> list[float | None]:
    return [effect.alone.mean if effect.alone else None for effect in attribution.effects]


def named(attribution: Attribution) -> set[tuple[int, int]]:
    return {(entry.first, entry.second) for entry in attribution.interactions if entry.named}


def shapley_by_definition(k: int, loss: Callable[[Coalition], float]) -> list[float]:
    """The mean over every order of what a change adds when its turn comes."""
    orders = list(permutations(range(k)))
    adds = [
        [loss(frozenset(order[: order.index(i) + 1])) - loss(frozenset(order[: order.index(i)])) for order in orders]
        for i in range(k)
    ]
    return [statistics.fmean(column) for column in adds]


def random_game(k: int, seed: int = 1) -> dict[Coalition, float]:
    rng = np.random.default_rng(seed)
    every = [frozenset(some) for size in range(k + 1) for some in combinations(range(k), size)]
    return {c: float(rng.normal(6.5, 0.3)) for c in every}


def singles(k: int) -> list[Coalition]:
    """The combinations of no or one change and their complements: too few for interactions."""
    return [c for c in coalitions(k) if len(c) in (0, 1, k - 1, k)]


# What changed


def test_the_story_changed_four_settings() -> None:
    found = changed_settings(BEFORE, DOCUMENTED)
    assert [(setting.name, setting.before, setting.after) for setting in found] == [
        ("batch_size", "8", "32"),
        ("block_size", "256", "128"),
        ("learning_rate", "2e-5", "1e-5"),
        ("schedule", "warmup_cosine, warm-up 10 %", "constant"),
    ]


LORA = replace(DOCUMENTED, use_lora=True)
COSINE = replace(BEFORE, warmup_steps=480, training_steps=4800)


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (BEFORE, replace(BEFORE, seed=3, training_steps=5000), []),
        (BEFORE, COSINE, []),  # another budget, the same share of it
        (BEFORE, replace(BEFORE, warmup_steps=501), ["schedule"]),
        (replace(BEFORE, training_steps=48, warmup_steps=5), replace(BEFORE, training_steps=195, warmup_steps=20), []),
        (BEFORE, replace(BEFORE, decay_frac=0.5), []),  # a cosine reads no decay_frac
        (replace(BEFORE, lr_schedule="wsd"), replace(BEFORE, lr_schedule="wsd", decay_frac=0.5), ["schedule"]),
        (BEFORE, replace(BEFORE, min_lr_frac=0.0), ["schedule"]),
        (DOCUMENTED, replace(DOCUMENTED, warmup_steps=9, min_lr_frac=0.0, decay_frac=0.9), []),
        (DOCUMENTED, replace(DOCUMENTED, batch_size=8, grad_accum_steps=4), ["batch_size"]),
        (DOCUMENTED, replace(DOCUMENTED, dropout=0.0, precision="bf16"), ["dropout", "precision"]),
        (DOCUMENTED, replace(DOCUMENTED, lora_rank=4, lora_targets="q_proj"), []),  # which nothing reads without LoRA
        (DOCUMENTED, replace(LORA, lora_rank=4), ["lora"]),
        (LORA, replace(LORA, lora_alpha=32, lora_dropout=0.1), ["lora"]),
    ],
)
def test_what_is_one_setting_and_what_is_none(before: TrialConfig, after: TrialConfig, names: list[str]) -> None:
    assert [setting.name for setting in changed_settings(before, after)] == names


def test_settings_say_what_differs() -> None:
    (schedule,) = changed_settings(BEFORE, replace(BEFORE, min_lr_frac=0.0))
    assert schedule.before == "warmup_cosine, warm-up 10 %, min_lr_frac 0.1"
    (batch,) = changed_settings(DOCUMENTED, replace(DOCUMENTED, batch_size=8, grad_accum_steps=4))
    assert (batch.before, batch.after) == ("32 x 1", "8 x 4")
    (lora,) = changed_settings(DOCUMENTED, LORA)
    assert (lora.before, lora.after) == ("all weights", "LoRA rank 8, alpha 16")
    (lora,) = changed_settings(LORA, replace(LORA, lora_dropout=0.1))
    assert lora.after == "LoRA rank 8, alpha 16, dropout 0.1"


def test_a_configuration_takes_the_coalitions_settings_whole() -> None:
    found = changed_settings(BEFORE, DOCUMENTED)
    assert config_of(BEFORE, DOCUMENTED, found, ()) == BEFORE
    assert config_of(BEFORE, DOCUMENTED, found, range(4)) == replace(DOCUMENTED, training_steps=5000)
    assert config_of(BEFORE, DOCUMENTED, found, {1, 3}) == replace(
        BEFORE, block_size=128, lr_schedule="constant", warmup_steps=0
    )
    # The other way round: before's warm-up of 500 of 5000 steps is 200 of 2000.
    assert config_of(DOCUMENTED, BEFORE, found, {3}) == replace(
        DOCUMENTED, lr_schedule="warmup_cosine", warmup_steps=200
    )


# Which combinations


def test_up_to_five_changes_every_combination_is_run() -> None:
    for k in range(1, 6):
        found = coalitions(k)
        assert len(found) == len(set(found)) == 2**k
    assert coalitions(2) == [frozenset(), frozenset({0}), frozenset({1}), frozenset({0, 1})]


@pytest.mark.parametrize("k", [6, 7, 9, 12])
def test_of_more_changes_the_combinations_are_balanced_and_determine_every_two(k: int) -> None:
    found = coalitions(k)
    everything = frozenset(range(k))
    assert len(set(found)) == len(found) == 2 + k * (k + 1)
    assert {frozenset(), everything, *(frozenset({i}) for i in range(k))} <= set(found)
    assert all(everything - coalition in found for coalition in found)
    assert all(2 * sum(i in coalition for coalition in found) == len(found) for i in range(k))
    assert shapley_weights(found, k) is not None
    assert interaction_weights(found, k) is not None


def test_too_few_or_too_many_changes_are_refused() -> None:
    for k in (0, 13):
        with pytest.raises(UserError, match=f"{k} settings differ; at least 1 and at most 12"):
            coalitions(k)


# The weights


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_every_combination_gives_shapleys_own_values(k: int) -> None:
    game = random_game(k)
    weights = shapley_weights(list(game), k)
    assert weights is not None
    values = weights @ np.array(list(game.values()))
    assert values == pytest.approx(shapley_by_definition(k, game.__getitem__), abs=1e-12)
    assert values.sum() == pytest.approx(game[frozenset(range(k))] - game[frozenset()], abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_combination_gives_the_interaction_index_of_its_definition(k: int) -> None:
    game = random_game(k)
    weights = interaction_weights(list(game), k)
    assert weights is not None
    values = weights @ np.array(list(game.values()))
    for (i, j), value in zip(combinations(range(k), 2), values, strict=True):
        index = 0.0
        for size in range(k - 1):
            for some in combinations(sorted(set(range(k)) - {i, j}), size):
                c = frozenset(some)
                beyond = game[c | {i, j}] - game[c | {i}] - game[c | {j}] + game[c]
                index += math.factorial(size) * math.factorial(k - size - 2) / math.factorial(k - 1) * beyond
        assert value == pytest.approx(index, abs=1e-12)


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_least_squares_on_nearly_everything_comes_near_shapleys_values(k: int) -> None:
    # Lundberg & Lee's theorem 2: the regression on every combination is the Shapley value. Empty columns that no pair
    # needs are the only way to ask for the regression here, so one combination is given twice.
    game = random_game(k)
    columns = [*game, frozenset({0, 99})]
    weights = shapley_weights(columns, k)
    assert weights is not None
    values = weights @ np.array([*game.values(), 1e9])
    assert values == pytest.approx(shapley_by_definition(k, game.__getitem__), abs=1e-6)


@pytest.mark.parametrize("of", [coalitions, singles])
def test_a_part_is_exact_when_changes_interact_in_twos(of: Callable[[int], list[Coalition]]) -> None:
    two_way = {(0, 2): -0.2, (1, 5): 0.15, (3, 4): 0.05}
    losses = make_losses(7, two_way, of=of(7))
    found = attribute(losses, make_settings(7))
    assert shapley_means(found) == pytest.approx(true_shapley(7, two_way), abs=1e-9)
    assert not found.is_exact
    assert bool(found.interactions) == (of is coalitions)
    if found.interactions:
        means = {(entry.first, entry.second): entry.estimate.mean for entry in found.interactions}
        assert means == pytest.approx({two: two_way.get(two, 0.0) for two in combinations(range(7), 2)}, abs=1e-9)


# Known truths with noise


DESIGNS = [(4, coalitions), (7, coalitions), (7, singles)]


@pytest.mark.parametrize(("k", "of"), DESIGNS)
@pytest.mark.parametrize("interactions", [{}, ONE_INTERACTION], ids=["additive", "interacting"])
def test_the_truth_is_recovered_through_noise(
    k: int, of: Callable[[int], list[Coalition]], interactions: dict[tuple[int, int], float]
) -> None:
    losses = make_losses(k, interactions, seeds=5, noise=0.01, of=of(k))
    found = attribute(losses, make_settings(k))
    assert found.is_exact == (k == 4)
    assert shapley_means(found) == pytest.approx(true_shapley(k, interactions), abs=0.02)
    assert alone_means(found) == pytest.approx(MAIN[:k], abs=0.02)
    assert found.total is not None
    assert sum(shapley_means(found)) == pytest.approx(found.total.mean, abs=1e-12)
    assert named(found) == (set(interactions) if of is coalitions else set())
    assert bool(found.interactions) == (of is coalitions)


def holds(estimate: Estimate | None, value: float) -> bool:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= value <= estimate.high


@pytest.mark.parametrize(("k", "of"), DESIGNS)
def test_all_intervals_hold_the_truth_at_once_as_often_as_they_say(
    k: int, of: Callable[[int], list[Coalition]]
) -> None:
    missed, falsely_named, times = 0, 0, 60
    for rng_seed in range(times):
        losses = make_losses(k, ONE_INTERACTION, seeds=4, noise=0.02, of=of(k), rng_seed=rng_seed)
        found = attribute(losses, make_settings(k))
        estimates = [
            *zip([effect.shapley for effect in found.effects], true_shapley(k, ONE_INTERACTION), strict=True),
            *zip([effect.alone for effect in found.effects], MAIN[:k], strict=True),
        ]
        missed += not all(holds(estimate, value) for estimate, value in estimates)
        falsely_named += bool(named(found) - set(ONE_INTERACTION))
    assert missed <= 0.08 * times
    assert falsely_named <= 0.05 * times


@pytest.mark.parametrize(("k", "seeds", "times"), [(1, 3, 200), (2, 3, 200), (4, 3, 100)])
def test_of_changes_without_any_effect_at_most_5_percent_are_called_proven(k: int, seeds: int, times: int) -> None:
    rng, proven = np.random.default_rng(0), 0
    for _ in range(times):
        by_seed = 4.5 + 0.03 * rng.standard_normal(seeds)
        losses = {
            coalition: {seed: by_seed[seed] + 0.02 * rng.standard_normal() for seed in range(seeds)}
            for coalition in coalitions(k)
        }
        found = attribute(losses, make_settings(k))
        said = [found.total, *(effect.alone for effect in found.effects), *(effect.shapley for effect in found.effects)]
        said += [entry.estimate for entry in found.interactions]
        said += [found.path.difference] if found.path else []
        proven += any(estimate is not None and estimate.is_proven for estimate in said)
    assert proven <= 0.05 * times


def test_intervals_are_paired_by_seed() -> None:
    # The seeds move every run by about 0.05; none of that is in a difference.
    found = attribute(make_losses(4, ONE_INTERACTION, seeds=4, noise=1e-4), make_settings(4))
    assert found.total is not None
    assert found.total.high == pytest.approx(found.total.mean, abs=2e-3)


def test_effects_that_are_the_same_on_every_seed_are_not_proven() -> None:
    found = attribute(make_losses(4, ONE_INTERACTION, seeds=4), make_settings(4))
    assert found.total is not None
    estimates = [found.total, *(effect.shapley for effect in found.effects), *(one.alone for one in found.effects)]
    estimates += [entry.estimate for entry in found.interactions]
    assert all(one is not None and one.low is one.high is None and not one.is_proven for one in estimates)
    assert named(found) == set()
    assert "s0 new did it: -0.4000 (not proven) of -0.5200 nats/token" in did_it_words(found)
    assert any("the same on every seed" in note for note in found.notes)


def test_one_seed_has_no_interval_and_names_by_size() -> None:
    found = attribute(make_losses(4, {(0, 2): -0.20, (1, 3): 0.01}, seeds=1, noise=0.001), make_settings(4))
    assert all(effect.shapley is not None and effect.shapley.low is None for effect in found.effects)
    assert named(found) == {(0, 2)}
    assert "one seed: no interval, so an effect cannot be told from noise" in found.notes


def test_nothing_changed_anything() -> None:
    losses: Losses = {c: {0: 5.0} for c in coalitions(4)}
    found = attribute(losses, make_settings(4))
    assert shapley_means(found) == [0.0] * 4
    assert named(found) == set()
    assert found.path is not None
    assert found.path.order == ()


def test_one_change_is_the_whole_difference() -> None:
    found = attribute(make_losses(1, noise=1e-5), make_settings(1))
    assert shapley_means(found) == alone_means(found) == [pytest.approx(MAIN[0], abs=1e-4)]
    assert found.interactions == ()
    assert found.notes == ()


# The path


def test_the_path_is_the_fewest_changes_that_gain_most_and_the_best_first() -> None:
    path = attribute(make_losses(4, ONE_INTERACTION), make_settings(4)).path
    assert path is not None
    assert (path.order, path.best) == ((0, 2), frozenset({0, 2}))
    assert path.losses[1:] == pytest.approx([path.losses[0] - 0.30, path.losses[0] - 0.60])  # type: ignore[operator]
    assert path.share_frac == pytest.approx(1.0)
    assert path.difference is not None
    assert path.difference.mean == pytest.approx(-0.60)


def test_ninety_percent_is_enough() -> None:
    # Of 0.40, change 0 gives 0.37.
    small = {frozenset(c): {0: 5.0 - (0.37 if 0 in c else 0.0) - 0.01 * len(set(c) - {0})} for c in coalitions(4)}
    path = attribute(small, make_settings(4)).path
    assert path is not None
    assert (path.order, path.best) == ((0,), ALL)
    assert path.share_frac == pytest.approx(0.37 / 0.40)


def test_the_path_leads_around_an_unstable_combination() -> None:
    losses = make_losses(4, ONE_INTERACTION)
    losses[frozenset({0})][1] = None
    path = attribute(losses, make_settings(4)).path
    assert path is not None
    assert path.order == (2, 0)
    losses[frozenset({2})][1] = None
    path = attribute(losses, make_settings(4)).path
    assert path is not None
    assert (path.order, path.losses[1]) == ((0, 2), None)


def test_there_is_no_path_when_nothing_gains() -> None:
    losses: Losses = {c: {0: 5.0 + 0.1 * len(c)} for c in coalitions(3)}
    found = attribute(losses, make_settings(3), before_name="mine")
    assert found.path is not None
    assert (found.path.order, found.path.losses, found.path.share_frac) == ((), (5.0,), None)
    assert "Shortest path: none; no combination was better than mine." in summary_lines(found)


@pytest.mark.parametrize(("seeds", "said"), [(1, "No interaction worth naming."), (2, "No interaction is proven.")])
def test_an_interaction_that_is_not_proven_is_not_denied(seeds: int, said: str) -> None:
    strength = 0.0 if seeds == 1 else 0.05
    found = attribute(make_losses(2, {(0, 1): strength}, seeds=seeds, noise=0.02 * (seeds > 1)), make_settings(2))
    assert summary_lines(found)[0] == said


def test_the_answer_is_a_sentence() -> None:
    def losses_of(*effects: float) -> Losses:
        # Of seeds that change a little, or nothing would be proven.
        return {
            c: {seed: 5.0 + (1 + 1e-4 * seed) * sum(effects[k] for k in c) for seed in (0, 1, 2)}
            for c in coalitions(len(effects))
        }

    settings = changed_settings(BEFORE, DOCUMENTED)
    found = attribute(losses_of(-0.001, 0.02, -0.07, -0.03), settings)
    assert did_it_words(found) == (
        "learning rate 1e-5 did it: -0.0700 of -0.0810 nats/token; schedule constant gave -0.0300; "
        "block size 128 cost 0.0200."
    )
    worse = attribute(losses_of(0.0, 0.02, 0.07, 0.0), settings, after_name="mine")
    assert did_it_words(worse) == (
        "No gain: mine is +0.0900 nats/token; learning rate 1e-5 cost 0.0700; block size 128 cost 0.0200."
    )
    # The largest gain too, where others cost more.
    mixed = attribute(losses_of(-0.05, 0.0, 0.09, -0.03), settings, after_name="mine")
    assert did_it_words(mixed) == (
        "No gain: mine is +0.0100 nats/token; batch size 32 gave -0.0500; schedule constant gave -0.0300; "
        "learning rate 1e-5 cost 0.0900."
    )


# Unstable and missing runs


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_an_unstable_combination_is_named_and_the_rest_still_gives_the_truth(loss: float | None) -> None:
    losses = make_losses(4, ONE_INTERACTION, noise=1e-5)
    losses[frozenset({1})][2] = loss
    found = attribute(losses, make_settings(4))
    assert [(entry.changes, entry.seeds) for entry in found.unstable] == [(frozenset({1}), (2,))]
    assert alone_means(found)[1] is None
    assert shapley_means(found) == pytest.approx(true_shapley(4, ONE_INTERACTION), abs=1e-4)
    assert found.combinations == 15
    assert found.notes == (
        "s1 did not complete on seed 2",
        "from 15 of 16 combinations, without 1 that did not complete on a seed in use: exact unless three or more "
        "changes interact",
    )
    text = shown_text(found)
    assert "incomplete" in text


def test_a_seed_with_an_unstable_end_is_left_out_and_said() -> None:
    losses = make_losses(4, ONE_INTERACTION, noise=1e-5)
    losses[frozenset()][0] = None
    found = attribute(losses, make_settings(4))
    assert found.seeds == (1, 2)
    assert found.is_exact
    assert found.notes == ("before did not complete on seed 0",)


def test_when_an_end_is_always_unstable_there_is_nothing_to_share_out() -> None:
    losses = make_losses(3)
    losses[frozenset()] = dict.fromkeys(range(3))
    found = attribute(losses, make_settings(3))
    assert (found.seeds, found.total, found.loss_after, found.interactions, found.path) == ((), None, None, (), None)
    assert [(effect.alone, effect.shapley) for effect in found.effects] == [(None, None)] * 3
    assert found.notes[0] == "on every seed before or after did not complete: there is no difference to attribute"
    assert "unknown" in shown_text(found)
    assert from_json(to_json(found)) == found
    assert did_it_words(found) == "Which change did it is not known: too few combinations completed."


def test_too_many_unstable_combinations_leave_the_values_unknown() -> None:
    losses = make_losses(2)
    losses[frozenset({0})][1] = None
    found = attribute(losses, make_settings(2))
    assert [effect.shapley for effect in found.effects] == [None, None]
    assert found.interactions == ()
    assert alone_means(found) == [None, pytest.approx(MAIN[1])]
    assert "too few combinations to determine the Shapley values" in found.notes


def test_a_seed_not_run_for_every_combination_is_left_out_and_said() -> None:
    losses = make_losses(3, seeds=4, noise=1e-5)
    for coalition in coalitions(3)[1:]:
        del losses[coalition][3]
    found = attribute(losses, make_settings(3))
    assert (found.seeds, found.notes) == ((0, 1, 2), ("seed 3 left out: not run for every combination",))
    for seed, coalition in enumerate(coalitions(3)[1:4]):
        del losses[coalition][seed]
    with pytest.raises(UserError, match="no seed has every combination yet"):
        attribute(losses, make_settings(3))


# Words, file


def shown_text(attribution: Attribution, width: int = 100) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(render(attribution))
    return capture.get()


def story() -> Attribution:
    losses = make_losses(4, ONE_INTERACTION, noise=0.004)
    return attribute(losses, changed_settings(BEFORE, DOCUMENTED), after_name="documented")


def test_seeds_are_fresh_and_none_that_has_its_answer_is_dropped() -> None:
    after = replace(DOCUMENTED, learning_rate=3e-4)
    question = make_question("baseline", DOCUMENTED, "trial 1", after, Budget(tokens=409_600))
    trials = [trial_row(0, val_loss=4.5), trial_row(1, val_loss=4.2, learning_rate=3e-4)]
    # An attempt to confirm has begun and has run on seed 1 of its two alone.
    trials.append(trial_row(2, val_loss=4.5, purpose="confirmation", of_trial=0, seed=1))
    assert question.seeds(trials, 3, above=0, taken=(1, 2)) == [3, 4, 5]
    for run in question.runs([3, 4, 5]).values():
        trials.append({**trial_row(0, val_loss=4.0), **replace(run, trial_id=len(trials)).columns()})
    trials[3]["status"] = "failed"
    assert question.seeds(trials, 1, above=0) == [4, 5]
    assert question.seeds(trials, 4, above=0) == [4, 5, 3, 2]


def test_the_table_says_what_did_it() -> None:
    found = story()
    text = shown_text(found)
    assert "Which change did it? 3 seeds, nats/token, negative is better; ±: 95 %" in text
    assert "before → documented" in text
    shapley = shapley_means(found)
    line = next(line for line in text.splitlines() if "learning_rate" in line)
    assert "2e-5 → 1e-5" in line
    assert f"{shapley[2]:+.4f} ± " in line
    assert "Interaction: batch_size with learning_rate -0.2" in text
    assert "Shortest path: batch_size (6." in text
    assert max(len(line) for line in shown_text(found, width=80).splitlines()) <= 80


def test_the_words_are_not_markup() -> None:
    settings = [Setting(name="[red]a", fields=(), before="[b]", after="$x$"), *make_settings(3)[1:]]
    found = attribute(make_losses(3), settings, before_name="[bold]", after_name="[/]")
    assert "[red]a" in shown_text(found)
    assert "[bold] → [/]" in shown_text(found)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    study = Study(tmp_path)
    assert load_attribution(study) is None
    losses = make_losses(4, ONE_INTERACTION, noise=0.01)
    losses[frozenset({1, 2})][0] = None
    found = attribute(losses, changed_settings(BEFORE, DOCUMENTED))
    write_attribution(study, found)
    assert load_attribution(study) == found == from_json(to_json(found))
    row: dict[str, Any] = json.loads((tmp_path / "attribution.json").read_bytes())["settings"][0]
    assert found.effects[0].shapley is not None
    assert (row["name"], row["shapley"], row["low"]) == (
        "batch_size",
        found.effects[0].shapley.mean,
        found.effects[0].shapley.low,
    )


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        (["path"], {"order": [9, 0]}),
        (["path"], {"order": [-1, 0]}),
        (["path"], {"best": [7]}),
        (["path"], {"losses": [4.0]}),
        (["path"], {"share_frac": None}),
        (["interactions", 0], {"second": 7}),
        (["unstable", 0], {"changes": [7]}),
        (["settings", 0], {"fields": ["batch"]}),
    ],
)
def test_a_change_that_is_none_of_the_settings_is_damage(part: list[Any], changes: dict[str, Any]) -> None:
    losses = make_losses(4, ONE_INTERACTION)
    losses[frozenset({1, 2})][0] = None
    document: Any = to_json(attribute(losses, changed_settings(BEFORE, DOCUMENTED)))
    reduce(getitem, part, document).update(changes)
    with pytest.raises(ValueError, match=r"none of its settings|path is not whole|is no hyperparameter"):
        from_json(document)


@pytest.mark.parametrize("content", ["{", "[]", "null", "{}", '{"settings": [], "path": null}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "attribution.json").write_text(content)
    with pytest.raises(UserError, match=r"attribution\.json: not an attribution .*Move it away and attribute again\."):
        load_attribution(Study(tmp_path))
