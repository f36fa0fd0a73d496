"""`make report`: writes a study as one HTML page, as Markdown for a pull request, or as its numbers."""

from results.study.folder import LATEST, open_study
from results.study.paths import shown
from search.options import Options
from search.setup.finish import write_answer
from search.terminal.console import Preparing, Terminal


def report_command(options: Options, terminal: Terminal) -> int:
    """Write STUDY's report.html and report.md."""
    study = open_study(options.study or LATEST)
    with Preparing(terminal.console) as progress:
        progress("writing the report", 0.0)
        # The study may have been renamed, or its process killed, since the best configuration was written.
        facts = write_answer(study)
    terminal.say(f"report: {shown(study.path / 'report.html')} and report.md beside it")
    terminal.document(facts)
    return 0
