"""The first screen of the report: the winner beside the baseline, and the command to train it. It decides nothing."""

import math

from results.attribution.design import differs
from results.export import make_words, train_command
from results.ranking import final_loss
from results.report.facts.analysis import Measured, Row, parameter_values
from results.study.folder import STUDIES_DIR, Study
from results.winner import Winner, evidence_words, headline, notes, warning_words, way_words
from results.words import label, unit
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS, config_from

MAX_PERPLEXITY_NATS = 25.0
"""Beyond e^25 no perplexity is shown."""
_NOT_A_CHANGE = ("training_steps", "seed", "warmup_steps")


def answer_facts(study: Study, measured: Measured) -> Row:
    """Return the winner, the baseline, their difference, the proof, and the command that trains the winner."""
    winner = measured.winner
    return {
        "standing": winner.standing,
        "headline": headline(winner),
        "proof": _proof(winner),
        "notes": notes(winner),
        "start_val_loss": winner.start_val_loss,
        "way": way_words(winner),
        "worse_than_start": winner.worse_than_start,
        "warning": warning_words(winner),
        "winner": _side(winner.trial),
        "search_best": _side(winner.search_best),
        "baseline": _side(winner.baseline),
        "val_loss_difference": winner.search_difference,
        "changes": _changes(measured, winner.trial, winner.baseline),
        "export": _train_words(study, winner) if winner.trial else None,
    }


def _train_words(study: Study, winner: Winner) -> str:
    """Return the command, with STUDIES_DIR where another shell, which has not set it, would not find the study."""
    words, folder = train_command(study, winner), study.path.parent
    is_found = folder == STUDIES_DIR or "STUDY=" not in words
    return words if is_found else f"{words} {make_words({'STUDIES_DIR': str(folder)})}"


def _proof(winner: Winner) -> Row:
    """Return the proof's state: no_claim, not_confirmed, under_way, better, worse or not_proven; words and numbers."""
    fields = ("mean_difference", "low", "high", "p_value", "seeds", "seeds_needed")
    verdict, state = winner.verdict, "no_claim"
    if verdict is not None:
        state = verdict.outcome.replace(" ", "_")
    elif winner.standing == "unproven":
        state = "not_confirmed" if winner.under_way is None else "under_way"
    numbers = {name: None if verdict is None else getattr(verdict, name) for name in fields}
    attempt = winner.attempt and winner.attempt.number
    return {"state": state, "words": evidence_words(winner), "attempt": attempt, **numbers}


def _side(trial: Row | None) -> Row | None:
    if trial is None:
        return None
    final = final_loss(trial)
    kept = ("trial_id", "is_baseline", "status", "tokens_seen", "optimizer_steps", "active_s", "tokens_per_s")
    return {
        **{name: trial[name] for name in kept},
        "val_loss": final,
        "perplexity": math.exp(final) if final is not None and final < MAX_PERPLEXITY_NATS else None,
        "hyperparameters": {name: trial[name] for name in HYPERPARAMETERS},
    }


def _changes(measured: Measured, winner: Row | None, baseline: Row | None) -> list[Row]:
    """Return a row per hyperparameter that the winner changed, then those searched that it left unchanged."""
    if winner is None or baseline is None or winner["is_baseline"]:
        return []
    before, after = parameter_values(baseline), parameter_values(winner)
    searched = {parameter.name for parameter in measured.parameters}
    own, theirs = config_from(winner), config_from(baseline)
    if own.has_warmup and theirs.has_warmup and not differs("warmup_steps", theirs, own):
        after[WARMUP_FRAC] = before[WARMUP_FRAC]
    rows = []
    for name in (*HYPERPARAMETERS, WARMUP_FRAC):
        reads = [config.reads(name) for config in (theirs, own)]
        old, new = (row[name] if read else None for row, read in zip((before, after), reads, strict=True))
        is_same = before[name] == after[name] and name not in searched
        if name in _NOT_A_CHANGE or is_same or not any(reads):
            continue
        rows.append({"name": name, "label": label(name), "unit": unit(name), "baseline": old, "winner": new})
    return sorted(rows, key=lambda row: row["baseline"] == row["winner"])
