"""What every command that has run trials writes at its end."""

from typing import Any

from results.export import write_best
from results.report.page import write_reports
from results.study.folder import Study
from results.winner import winner_of
from search.cluster.study_storage import TableMirror
from search.options import Options
from search.setup.inputs import Loaded
from search.setup.samples_run import sample_study
from search.terminal.console import Terminal


def finish_study(
    study: Study, code: int, options: Options, terminal: Terminal, *, loaded: Loaded | None = None
) -> None:
    """Write the best configuration, the samples and the report, and copy them into STORAGE.

    code: the exit code of the runs. loaded: the study's inputs, if they are loaded.
    """
    if code == 0:  # after an interruption nobody waits for samples
        sample_study(study, options, terminal, loaded)
    with terminal.console.status("writing the report ..."):
        write_answer(study)
        if options.storage is not None:
            TableMirror(study, options.storage, terminal.say).close()


def write_answer(study: Study) -> dict[str, Any]:
    """Write best.env, best.json and the report, all of the same winner; return the report's facts."""
    if winner_of(study).trial is not None:
        write_best(study)
    return write_reports(study)
