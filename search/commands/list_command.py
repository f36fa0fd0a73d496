"""`make list`: lists the studies on disk, the newest first."""

from typing import Any

from rich.table import Table

from results.ranking import ranked_trials, spent_by_purpose
from results.study.folder import Study, check_folder_name, list_studies, studies_dir
from results.study.paths import shown
from results.winner import winner_in
from results.words import local_time_words, loss_words
from search.options import Options
from search.terminal.console import Terminal, print_table
from trainable.errors import UserError
from trainable.rows import ENDINGS


def list_command(_: Options, terminal: Terminal) -> int:
    """List the studies with their best and baseline losses."""
    entries = [_entry(study) for study in list_studies()]
    if not entries:
        terminal.say(f"no study in {shown(studies_dir())} yet. Make one with: make search SPACE=plateau")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("study", "kind", "made", "trials", "best", "baseline", "model"):
        numbers = heading in ("trials", "best", "baseline")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=heading == "study", overflow="fold")
    sound = [entry for entry in entries if "error" not in entry]
    for entry in sound:
        table.add_row(
            entry["study"],
            entry["kind"],
            local_time_words(entry["created_at"]),
            f"{entry['ended']}" + (f" of {entry['most_trials']}" if entry["ended"] < entry["most_trials"] else ""),
            loss_words(entry["best_val_loss"])
            + (" not below its start" if entry["worse_than_start"] else " proven" if entry["proven"] else ""),
            loss_words(entry["baseline_val_loss"]),
            entry["model"],
        )
    if sound:
        print_table(terminal.console, table)
    for entry in entries:
        if "error" in entry:
            terminal.warn(entry["error"])
    terminal.document({"studies": entries})
    return 0


def _entry(study: Study) -> dict[str, Any]:
    try:
        check_folder_name(study)
        document, trials = study.document(), study.trials()
        winner = winner_in(study, document, trials)
    except UserError as error:
        return {"study": study.name, "error": str(error)}
    # An attribution on its own has nothing but its runs.
    own = ranked_trials(trials) or trials
    return {
        "study": study.name,
        "path": str(study.path),
        "kind": document["kind"],
        "created_at": document["created_at"],
        "trials": len(own),
        "ended": sum(row["status"] in ENDINGS for row in own),
        "most_trials": end["most_trials"] if (end := document.get("early_end")) else document["trials_planned"],
        "runs": {purpose: spent["runs"] for purpose, spent in spent_by_purpose(trials).items()},
        "best": winner.trial,
        "best_val_loss": winner.trial and winner.trial["val_loss"],
        "proven": winner.standing == "proven",
        "worse_than_start": winner.worse_than_start,
        "baseline_val_loss": winner.baseline_val_loss,
        "model": document["model"],
    }
