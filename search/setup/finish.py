"""What every command that has run trials leaves behind."""

from results.export import write_best
from results.report.page import write_reports
from results.study.folder import Study
from results.winner import winner_of
from search.cluster.study_storage import TableMirror
from search.terminal.console import Terminal


def finish_study(study: Study, terminal: Terminal, storage: str | None = None) -> None:
    """Write what is read after a study: the best configuration and the report; and mirror it all in the storage."""
    if winner_of(study).trial is not None:
        write_best(study)
    with terminal.console.status("writing the report ..."):
        write_reports(study)
        if storage is not None:
            TableMirror(study, storage, terminal.say).close()
