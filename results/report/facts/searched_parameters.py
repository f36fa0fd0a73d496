"""Where in the space the winner lies, and where training was unstable. Pure; it reads no file."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from results.ranking import final_loss, is_less, leaderboard
from results.report.facts.analysis import Measured, Row
from results.words import label, percent_words, range_words, value_words
from spaces.domains import Choice, SearchParameter
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS
from trainable.errors import count_words

EDGE_FRAC = 0.05
"""A value within this share of a range's end is on its edge."""
JUDGED = ("completed", "stopped", "unstable")
"""Endings that show whether a configuration trains stably; a stopped trial was stable up to its stop."""
MAX_LR_BINS = 8


def edges(measured: Measured) -> Iterator[Row]:
    """Yield the searched parameters for which the winner is on the edge of the domain, and how to widen it."""
    board = [trial for trial in leaderboard(measured.trials) if final_loss(trial) is not None]
    best = measured.winner.trial
    if best is None or not measured.domains_known:
        return
    point = measured.values(best)
    for parameter in measured.parameters:
        value = point.get(parameter.name)
        side = None if value is None else _side(parameter, value)
        if side is None or _is_bound(parameter, side):
            continue
        # What makes a model worse is not to be had more of; only a lower rate may yet be better.
        if measured.winner.worse_than_start and (parameter.name, side) != ("learning_rate", "low"):
            continue
        others = [measured.values(trial).get(parameter.name) for trial in board[:3]]
        yield {
            "name": parameter.name,
            "value": value,
            "side": side,
            "domain": str(parameter.domain),
            "best_trials": len(others),
            "best_trials_there": sum(v is not None and _side(parameter, v) == side for v in others),
            "words": f"{label(parameter.name)} {value_words(value)} is at the {side} end of {parameter.domain}: "
            f"widen it {'downwards' if side == 'low' else 'upwards'}",
        }


def _side(parameter: SearchParameter, value: Any) -> str | None:
    domain = parameter.domain
    if isinstance(domain, Choice):
        if len(domain.values) < 2 or any(isinstance(known, (str, bool)) for known in domain.values):
            return None
        return "low" if value <= min(domain.values) else "high" if value >= max(domain.values) else None
    scale = math.log if domain.log else float
    place = (scale(value) - scale(domain.low)) / (scale(domain.high) - scale(domain.low))
    return "low" if place <= EDGE_FRAC else "high" if place >= 1 - EDGE_FRAC else None


def _is_bound(parameter: SearchParameter, side: str) -> bool:
    """Return whether the domain's end is the hyperparameter's own bound."""
    ends = parameter.domain.examples()
    meta = {"low": 0.0, "high": 1.0} if parameter.name == WARMUP_FRAC else HYPERPARAMETERS[parameter.name].metadata
    return bool(min(ends) <= meta["low"] if side == "low" else max(ends) >= meta["high"])


def instability(measured: Measured) -> Row:
    """Return the share of unstable trials: of all, by setting, and by learning rate and batch size."""
    judged = [trial for trial in measured.trials if trial["status"] in JUDGED]
    unstable = [trial for trial in judged if trial["status"] == "unstable"]
    reasons = Counter(str(trial["verdict"] or "unknown").partition(" at step ")[0] for trial in unstable)
    bins = _lr_bins(measured)
    settings = [
        {
            "name": "learning_rate",
            "label": range_words(low, high),
            **_share([t for t in judged if _bin_of(t, bins) == k]),
        }
        for k, (low, high) in enumerate(bins)
    ]
    for parameter in measured.parameters:
        if parameter.name != "learning_rate" and isinstance(parameter.domain, Choice):
            for value in ordered(parameter.domain.values):
                with_it = [t for t in judged if measured.values(t).get(parameter.name) == value]
                settings.append({"name": parameter.name, "label": value_words(value), **_share(with_it)})
    cells = [
        {"batch_size": batch, "lr_low": low, "lr_high": high, **_share(inside)}
        for batch in sorted({trial["batch_size"] for trial in judged})
        for k, (low, high) in enumerate(bins)
        if (inside := [t for t in judged if t["batch_size"] == batch and _bin_of(t, bins) == k])
    ]
    stopped = [trial for trial in judged if trial["status"] == "stopped"]
    return {
        **_share(judged),
        "stopped_above_start": sum(is_less(measured.initial_loss, trial["val_loss"]) for trial in stopped),
        "reasons": dict(reasons),
        "words": _where_words(judged, unstable, measured),
        "by_setting": settings,
        "lr_bins": bins,
        "cells": cells,
    }


def _share(trials: Sequence[Row]) -> Row:
    unstable = sum(trial["status"] == "unstable" for trial in trials)
    return {"trials": len(trials), "unstable": unstable, "unstable_frac": unstable / len(trials) if trials else None}


def _where_words(judged: Sequence[Row], unstable: Sequence[Row], measured: Measured) -> str:
    if not judged:
        return "no trial ran long enough to tell"
    if not unstable:
        return f"no trial of {len(judged)} was unstable"
    share = f"{len(unstable)} of {count_words(len(judged), 'trial')}"
    share += f" ({percent_words(len(unstable) / len(judged))}) went unstable"
    if measured.learning_rates is None:
        return share
    lowest = min(trial["learning_rate"] for trial in unstable)
    there = [trial for trial in judged if trial["learning_rate"] >= lowest]
    if len(there) == len(judged):
        return f"{share}, at the lowest learning rate tried ({value_words(lowest)}) too"
    above = f"{percent_words(len(unstable) / len(there))} of {count_words(len(there), 'trial')}"
    return f"{share}, none at a learning rate below {value_words(lowest)}; from there on {above} did"


def _lr_bins(measured: Measured) -> list[tuple[float, float]]:
    """Return intervals [low, high) of the learning rate, the last one closed; (v, v) is a single value."""
    domain = measured.learning_rates
    if domain is None:
        return [(rate, rate) for rate in sorted({trial["learning_rate"] for trial in measured.trials})][:MAX_LR_BINS]
    if isinstance(domain, Choice):
        return [(rate, rate) for rate in sorted(domain.values)]
    low, high, count = float(domain.low), float(domain.high), 4
    if domain.log:
        # In logarithms, for the ratio of the ends may be too large for a float.
        start, decades = math.log10(low), math.log10(high) - math.log10(low)
        count = min(MAX_LR_BINS, max(count, round(decades)))
        ends = [10 ** (start + decades * k / count) for k in range(1, count)]
    else:
        ends = [low + (high - low) * k / count for k in range(1, count)]
    return list(itertools.pairwise([low, *ends, high]))


def _bin_of(trial: Row, bins: Sequence[tuple[float, float]]) -> int | None:
    rate: float = trial["learning_rate"]
    if bins[0][0] == bins[0][1]:
        return next((k for k, (value, _) in enumerate(bins) if value == rate), None)
    # The ends are computed as powers, and a rate written as 1e-5 must not fall below a computed 1e-5.
    return min(sum(rate >= high * (1 - 1e-9) for _, high in bins), len(bins) - 1)


def ordered(values: Sequence[Any]) -> list[Any]:
    """Return the values of a choice: numbers rising, names in the order of the space."""
    return list(values) if any(isinstance(value, str) for value in values) else sorted(values)
