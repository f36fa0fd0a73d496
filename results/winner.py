"""Who won a study: the search's best, the proven best, by how much, on which evidence. No other module decides it.

A trial that is proven better than the baseline wins, until another is proven better by more. The first of the search,
on its one lucky seed, is named beside it and does not replace it. Without a proof the search's best wins, unproven,
unless fresh seeds proved it worse than the baseline. Proofs of all attempts count: the chance that any of them is wrong
is at most 5 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from results.confirmation.attempt import Attempt, attempt_rows, confirmed_rows, load_attempts, trials_found
from results.confirmation.paired_t import CandidateVerdict
from results.ranking import baseline_trial, final_loss, leaderboard, ranked_trials
from results.study.folder import Study
from results.study.planned_run import Row, has_result
from results.words import STATUS_LABELS, amount_words, difference_words, interval_words, loss_words
from trainable.errors import UserError, count_words

Standing = Literal[
    "nothing_started",
    "nothing_completed",
    "trained",
    "baseline_alone",
    "baseline",
    "no_comparison",
    "unproven",
    "proven",
]
"""trained: a run of train, which has no baseline. no_comparison: a trial completed and the baseline did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """A study's winner and what it is compared with; rows are those of trials.parquet."""

    standing: Standing
    trial: Row | None
    """The winner, whose configuration is exported and trained; the baseline where no trial beat it."""
    search_best: Row | None
    """The lowest val_loss of the search, on one seed."""
    baseline: Row | None
    """Whatever its status."""
    verdict: CandidateVerdict | None
    """The winner's on fresh seeds: of several attempts the newest that proves it better, else the newest."""
    rival: Row | None
    """The best of the search that is neither the winner nor the baseline."""
    rival_verdict: CandidateVerdict | None
    attempt: Attempt | None
    """That of `verdict`."""
    under_way: tuple[int, int] | None
    """(ended, planned) runs of an attempt that was begun and is not judged yet."""
    confirmed: frozenset[int] = frozenset()
    """Trial_ids of all attempts, the baseline's included."""
    start_val_loss: float | None = None
    """Of the weights that every trial starts from; None where it was not evaluated."""

    @property
    def worse_than_start(self) -> bool:
        """Whether the winner's loss is not below the start's."""
        return is_worse(final_loss(self.trial), self.start_val_loss)

    @property
    def baseline_val_loss(self) -> float | None:
        """The baseline's loss at the full budget; None before it completed."""
        return final_loss(self.baseline)

    @property
    def search_difference(self) -> float | None:
        """The winner's val_loss less the baseline's, one seed each; None for the baseline itself."""
        loss, base = final_loss(self.trial), self.baseline_val_loss
        if self.trial is None or self.trial["is_baseline"] or loss is None or base is None:
            return None
        return loss - base

    @property
    def difference(self) -> float | None:
        """Winner less baseline, nats/token, negative is better: the mean over fresh seeds, without them one seed's."""
        mean = self.verdict.mean_difference if self.verdict is not None else None
        return self.search_difference if mean is None else mean

    @property
    def kept_checkpoints(self) -> frozenset[int]:
        """Trial_ids whose checkpoints are never deleted: those of possible winners and of the baseline."""
        rows = (self.trial, self.search_best, self.baseline)
        return frozenset(row["trial_id"] for row in rows if row is not None) | self.confirmed

    @property
    def name(self) -> str:
        """The winner for a sentence."""
        assert self.trial is not None
        if self.trial["purpose"] == "train":
            return "the run"
        return "the baseline" if self.trial["is_baseline"] else f"trial {self.trial['trial_id']}"


def winner_of(study: Study) -> Winner:
    """Return who won the study. Raises UserError when a file of it is damaged."""
    return winner_in(study, study.document(), study.trials())


def winner_in(study: Study, document: Row, trials: Sequence[Row]) -> Winner:
    """Return the same, where document and trials have been read."""
    attempts = load_attempts(study)
    try:
        return find_winner(trials, attempts, start_val_loss=start_val_loss(document))
    except UserError as error:
        raise UserError(f"study {study.name}: {error}") from None


def start_val_loss(document: Row) -> float | None:
    """Return the loss that a study starts from, as its document has it."""
    loss: float | None = (document.get("start") or {}).get("val_loss")
    return loss


def find_winner(
    trials: Sequence[Row], attempts: Sequence[Attempt] = (), *, start_val_loss: float | None = None
) -> Winner:
    """Return who won, by the module's rule. Raises UserError when a confirmed trial is missing."""
    rows = confirmed_rows(attempts, trials)
    baseline, ranked = baseline_trial(trials), ranked_trials(trials)
    board = [row for row in leaderboard(ranked) if final_loss(row) is not None]
    judged = [(one, verdict) for one in attempts for verdict in one.verdicts]
    proving = [(one, verdict) for one, verdict in judged if verdict.outcome == "better"]
    worse = trials_found("worse", attempts)
    proofs = {verdict.trial_id: (one, verdict) for one, verdict in proving if verdict.trial_id not in worse}
    verdicts = {verdict.trial_id: (one, verdict) for one, verdict in judged} | proofs
    proven = min(proofs, key=lambda trial_id: (*_strength(proofs[trial_id][1]), trial_id), default=None)
    trial = next((row for row in board if row["trial_id"] not in worse), None) if proven is None else rows[proven]
    attempt, verdict = verdicts.get(trial["trial_id"], (None, None)) if trial else (None, None)
    under_way = None
    if attempts and not attempts[-1].verdicts:
        have_ended = [has_result(row) for _, row in attempt_rows(attempts[-1], trials)]
        under_way = sum(have_ended), len(have_ended)
    rival = next((row for row in board if row is not trial and not row["is_baseline"]), None)
    return Winner(
        standing=_standing(trial, baseline, len(ranked), verdict),
        trial=trial,
        search_best=board[0] if board else None,
        baseline=baseline,
        verdict=verdict,
        rival=rival,
        rival_verdict=verdicts.get(rival["trial_id"], (None, None))[1] if rival else None,
        attempt=attempt,
        under_way=under_way,
        confirmed=frozenset(rows),
        start_val_loss=start_val_loss,
    )


def _standing(trial: Row | None, baseline: Row | None, started: int, verdict: CandidateVerdict | None) -> Standing:
    if trial is None:
        return "nothing_completed" if started else "nothing_started"
    if trial["purpose"] == "train":
        return "trained"
    if trial["is_baseline"]:
        return "baseline" if started > 1 else "baseline_alone"
    if verdict is not None and verdict.outcome == "better":
        return "proven"
    # A baseline that broke in the search may have completed on fresh seeds.
    is_compared = final_loss(baseline) is not None or (verdict is not None and verdict.mean_difference is not None)
    return "unproven" if is_compared else "no_comparison"


def _strength(verdict: CandidateVerdict) -> tuple[int, float]:
    mean = verdict.mean_difference
    return len(verdict.unstable_seeds), math.inf if mean is None else mean


def is_worse(loss: float | None, start_val_loss: float | None) -> bool:
    """Return whether a loss is known and not below the start's: such a training made the model no better."""
    return loss is not None and start_val_loss is not None and loss >= start_val_loss


def worse_words(who: str, loss: float | None, start_val_loss: float | None) -> str | None:
    """Return the sentence about a training that is_worse(), without its full stop; None for any other."""
    if loss is None or start_val_loss is None or not is_worse(loss, start_val_loss):
        return None
    what, by = "worse" if loss > start_val_loss else "no better", difference_words(loss - start_val_loss)
    return (
        f"{who} makes the model {what}: its val loss starts at {loss_words(start_val_loss)} and ends at "
        f"{loss_words(loss)}, {by} nats/token"
    )


def headline(winner: Winner) -> str:
    """Return the answer in a sentence without its full stop."""
    if winner.standing == "nothing_started":
        return "No trial was started"
    if winner.standing == "nothing_completed":
        return "No trial was completed, so there is no best configuration"
    if winner.standing == "trained":
        return "One configuration was trained"
    if winner.standing == "baseline_alone":
        return "The baseline alone was run"
    if winner.standing == "baseline":
        return f"The baseline is the best: {lost_lead_words(winner) or 'no trial beat it'}"
    name, baseline, verdict = f"{winner.name[0].upper()}{winner.name[1:]}", winner.baseline, winner.verdict
    if winner.standing == "no_comparison":
        how = "has not started" if baseline is None else f"did not complete ({STATUS_LABELS[baseline['status']]})"
        return f"{name} is the best; the baseline {how}, so there is nothing to compare it with"
    if winner.standing == "proven":
        assert winner.difference is not None
        return f"{name} is better than the baseline by {amount_words(winner.difference)} nats/token"
    if verdict is not None:
        is_first = winner.trial is winner.search_best
        place = "came first in the search" if is_first else "is the best of the search that is not proven worse"
        return f"{name} {place}; that it is better than the baseline is not proven"
    assert winner.difference is not None
    return f"{name} beat the baseline by {amount_words(winner.difference)} nats/token"


def lost_lead_words(winner: Winner) -> str | None:
    """Return why the baseline is the winner though a trial came first in the search; None where none did."""
    best = winner.search_best
    if best is None or best["is_baseline"]:
        return None
    return f"trial {best['trial_id']} came first in the search and is proven worse"


def way_words(winner: Winner) -> str | None:
    """Return the losses as start 3.5312 → baseline 3.4820 → best 3.3611; None where the start is not known."""
    if winner.start_val_loss is None:
        return None
    losses = {"start": winner.start_val_loss, "baseline": winner.baseline_val_loss}
    if winner.trial is not None and not winner.trial["is_baseline"]:
        losses["end" if winner.standing == "trained" else "best"] = final_loss(winner.trial)
    return " → ".join(f"{name} {loss_words(loss)}" for name, loss in losses.items() if loss is not None)


def warning_words(winner: Winner) -> str | None:
    """Return the warning about a winner whose loss is not below the start's, None where it is."""
    return worse_words(winner.name, final_loss(winner.trial), winner.start_val_loss) if winner.trial else None


def evidence_words(winner: Winner) -> str:
    """Return the evidence for the headline."""
    verdict, who = winner.verdict, ""
    if winner.standing == "baseline" and winner.rival is not None and winner.rival_verdict is not None:
        verdict = winner.rival_verdict
        who = f"trial {winner.rival['trial_id']}" + (": " if verdict.outcome == "not proven" else " is ")
    if verdict is not None:
        interval = "" if verdict.p_value is None else f"; interval {interval_words(verdict.low, verdict.high)}"
        return f"{who}{_verdict_words(verdict)}{interval}"
    if winner.standing == "unproven":
        return "one seed each, so not proven yet"
    return "one seed each, so nothing is claimed" if winner.standing == "baseline" else "no comparison was made"


def _verdict_words(verdict: CandidateVerdict) -> str:
    if verdict.outcome == "not proven":
        return verdict.words
    outcome, semicolon, rest = verdict.words.partition(";")
    return f"{outcome} on {count_words(verdict.seeds, 'fresh seed')}{semicolon}{rest}"


def notes(winner: Winner) -> list[str]:
    """Return notes on the winner: the search's best where it is another trial, an attempt under way."""
    lines = []
    best = winner.search_best
    if best is not None and winner.trial is not None and best["trial_id"] != winner.trial["trial_id"]:
        name, verdict = f"trial {best['trial_id']}", winner.rival_verdict
        proof = ", not confirmed yet" if verdict is None else f"; {_verdict_words(verdict)}"
        if best["is_baseline"]:
            name, proof = "the baseline", ""
        lines.append(f"{name} came first in the search, val loss {loss_words(best['val_loss'])} on one seed{proof}")
    if winner.under_way is not None:
        ended, planned = winner.under_way
        lines.append(f"a confirmation is under way: {ended} of {count_words(planned, 'run')} have ended")
    return lines


def to_json(winner: Winner) -> Row:
    """Return the winner as JSON's types."""
    verdict = winner.verdict
    fields = ("mean_difference", "low", "high", "p_value", "seeds_needed")
    is_proven = winner.standing == "proven"
    rows = {"trial_id": winner.trial, "search_best": winner.search_best}
    rows |= {"proven_best": winner.trial if is_proven else None, "baseline": winner.baseline}
    return {
        "standing": winner.standing,
        **{name: None if row is None else row["trial_id"] for name, row in rows.items()},
        "is_baseline": winner.trial is not None and winner.trial["is_baseline"],
        "val_loss": final_loss(winner.trial),
        "baseline_val_loss": winner.baseline_val_loss,
        "start_val_loss": winner.start_val_loss,
        "worse_than_start": winner.worse_than_start,
        "val_loss_difference": winner.search_difference,
        "confirmed": is_proven,
        "seeds": 1 if verdict is None else verdict.seeds,
        "attempt": winner.attempt and winner.attempt.number,
        **{name: None if verdict is None else getattr(verdict, name) for name in fields},
        "headline": headline(winner),
        "evidence": evidence_words(winner),
        "notes": notes(winner),
    }
