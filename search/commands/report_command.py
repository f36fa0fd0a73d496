"""`make report`: writes a study as one HTML page, as Markdown for a pull request, or as its numbers."""

from results.report.page import write_reports
from results.study.folder import LATEST, open_study
from results.study.paths import shown
from search.options import Options
from search.terminal.console import Terminal


def report_command(options: Options, terminal: Terminal) -> int:
    """Write STUDY's report.html and report.md."""
    study = open_study(options.study or LATEST)
    with terminal.console.status("writing the report ..."):
        facts = write_reports(study)
    terminal.say(f"report: {shown(study.path / 'report.html')} and report.md beside it")
    terminal.document(facts)
    return 0
