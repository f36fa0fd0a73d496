"""`make baseline`: runs the documented configuration alone, and prints documented against measured numbers."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from results.ranking import ranked_trials
from results.study.folder import Study
from results.study.ledger import Ledger
from results.winner import headline, to_json, warning_words, way_words, winner_of
from results.words import UNKNOWN, loss_words, token_words
from search.commands.run_command import header_lines, run_own_trials
from search.options import Options
from search.setup.finish import finish_study
from search.setup.plan import make_plan
from search.setup.run_plan import checked
from search.terminal.console import Preparing, Terminal, print_wide
from search.terminal.next_steps import ending_document
from search.terminal.summary import sample_lines
from trainable.config import BASELINES, BEFORE, TrialConfig, config_from
from trainable.schedule import learning_rate_at
from trainable.stability import judge_trace

if TYPE_CHECKING:
    from trainable.run import RunSpec

DOCUMENTED_RATES = {0: 2.00e-06, 500: 2.00e-05, 1000: 1.95e-05, 2000: 1.55e-05}
"""`before`'s logged learning rates by step."""
DOCUMENTED_LOSSES = {
    "before": {0: 9.2680, 500: 7.1291, 1000: 6.7096, 1500: 6.7427, 2000: 9.6169, 2500: 6.7105},
    "documented": {2000: 6.65, 2500: 6.5, 3000: 6.4, 3500: 6.4},
}
"""Validation losses of the plateau run, by step, on another model and text; `documented` as expected from step 1500."""


def baseline_command(options: Options, terminal: Terminal) -> int:
    """Run the baseline, and COMPARE beside it; return the exit code."""
    with Preparing(terminal.console) as progress:
        plan = make_plan(options, kind="baseline", progress=progress)
    with checked(plan, terminal) as plan:
        code = run_own_trials(plan, Ledger(plan.study), terminal, header_lines(plan))
    study = plan.study
    unwritten = finish_study(study, options, terminal, samples=code == 0, loaded=plan.loaded)
    names = [plan.document["baseline"]["name"], *([options.compare] if options.compare else [])]
    measured = [
        _measured(study, row, name, plan.loaded.spec)
        for row, name in zip(ranked_trials(study.trials()), names, strict=False)
    ]
    for facts in measured:
        _say_facts(facts, terminal)
    winner = winner_of(study)
    terminal.say(headline(winner), way_words(winner), *sample_lines(study))
    terminal.warn(warning_words(winner))
    ratio: float | None = None
    speeds = [facts["tokens_per_s"] for facts in measured]
    if len(speeds) == 2 and all(speeds):
        ratio = speeds[0] / speeds[1]
        terminal.say(speed_words(ratio, str(options.compare), plan.slots.count))
    runs = [{**facts, "config": asdict(facts["config"])} for facts in measured]
    terminal.document(
        {
            **ending_document(study, terminal),
            "winner": to_json(winner),
            "start_val_loss": winner.start_val_loss,
            "worse_than_start": winner.worse_than_start,
            "runs": runs,
            "speed_ratio": ratio,
        }
    )
    return code or unwritten


def speed_words(ratio: float, other: str, slots: int) -> str:
    """Return how fast the baseline was against `other`, and whether they shared the machine."""
    order = "side by side" if slots > 1 else "one after the other"
    return f"speed: the baseline does {ratio:.2f} times the tokens/s of {other}, both run {order}"


def _measured(study: Study, row: dict[str, Any], name: str, spec: "RunSpec") -> dict[str, Any]:
    steps = study.steps(row["trial_id"])
    findings = judge_trace(
        [step["train_loss"] for step in steps],
        [step["grad_norm"] for step in steps],
        [step["step_time_s"] for step in steps],
        budget_steps=row["training_steps"],
        unigram_entropy=spec.unigram_entropy,
        from_scratch=spec.from_scratch,
    )
    evaluations = [metrics for metrics in study.metrics() if metrics["trial_id"] == row["trial_id"]]
    config = config_from(row)
    times_s = sorted(step["step_time_s"] for step in steps)
    return {
        "name": name,
        "status": row["status"],
        "config": config,
        "evaluations": evaluations,
        "learning_rates": [
            {
                "step": metrics["optimizer_steps"],
                "by_formula": learning_rate_at(metrics["optimizer_steps"], config),
                "measured": metrics["learning_rate"],
            }
            for metrics in evaluations
        ],
        "spikes": [finding.step for finding in findings if finding.kind == "spike"],
        "findings": [f"step {finding.step}: {finding.kind}: {finding.evidence}" for finding in findings],
        "steps_per_s": 1 / times_s[len(times_s) // 2] if times_s else None,
        "tokens_per_s": row["tokens_per_s"],
    }


def _say_facts(facts: dict[str, Any], terminal: Terminal) -> None:
    config: TrialConfig = facts["config"]
    documented = BASELINES.get(facts["name"].removesuffix(", changed"))
    fields = ("batch_size", "block_size", "learning_rate", "lr_schedule", "warmup_steps", "training_steps")
    rows = [(field, f"{getattr(documented, field, UNKNOWN)}", f"{getattr(config, field)}") for field in fields]
    rows += [("optimizer steps/s", "1.05, later 0.62 (its machine)", f"{facts['steps_per_s'] or 0:.2f}, median step")]
    spikes = f"{len(facts['spikes'])}" + (f" (steps {', '.join(map(str, facts['spikes']))})" if facts["spikes"] else "")
    rows += [("spikes", "1 (step 2000)" if documented is BEFORE else "none expected", spikes)]
    if documented is BEFORE:
        for step, rate in DOCUMENTED_RATES.items():
            rows += [(f"LR at step {step} of 5000", f"{rate:.2e}", f"{learning_rate_at(step, BEFORE):.2e}")]
    title = f"{facts['name']}: {'as documented, and ' if documented else ''}as measured here"
    table = Table(title=title, title_justify="left", header_style="bold")
    # Of a person's own settings nothing was documented.
    kept = (0, 1, 2) if documented else (0, 2)
    for column in kept:
        table.add_column(("setting", "documented", "measured")[column], overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in kept))
    print_wide(terminal.console, table)
    _say_trajectory(facts, terminal)


def _say_trajectory(facts: dict[str, Any], terminal: Terminal) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("step", "tokens", "train loss", "val loss", "LR", "LR by formula", "grad norm"):
        table.add_column(heading, justify="right")
    for metrics, rate in zip(facts["evaluations"], facts["learning_rates"], strict=True):
        table.add_row(
            str(metrics["optimizer_steps"]),
            token_words(metrics["tokens_seen"]),
            loss_words(metrics["train_loss"]),
            loss_words(metrics["val_loss"]),
            f"{metrics['learning_rate']:.2e}",
            f"{rate['by_formula']:.2e}",
            UNKNOWN if metrics["grad_norm"] is None else f"{metrics['grad_norm']:.2f}",
        )
    # Without an evaluation, out of memory say, there is nothing below the headings.
    if table.row_count:
        print_wide(terminal.console, table)
    losses = DOCUMENTED_LOSSES.get(facts["name"])
    if losses:
        words = ", ".join(f"{loss} at step {step}" for step, loss in losses.items())
        terminal.say(f"documented val losses, of another model and text, so not comparable: {words}")
    for line in facts["findings"]:
        terminal.say(line)
