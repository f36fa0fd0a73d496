"""What every command that has run trials leaves behind."""

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
    """Write what is read after a study: the best configuration, the samples and the report; mirror it in the storage.

    code: with which its runs ended. loaded: the study's inputs, where they are at hand.
    """
    if winner_of(study).trial is not None:
        write_best(study)
    if code == 0:  # who has interrupted a study does not wait for its samples
        sample_study(study, options, terminal, loaded)
    with terminal.console.status("writing the report ..."):
        write_reports(study)
        if options.storage is not None:
            TableMirror(study, options.storage, terminal.say).close()
