"""`make report`: a study as one HTML page, as Markdown for a pull request, or as its numbers."""

from results.atomic import write_atomic
from results.paths import shown
from results.report.facts import report_facts
from results.report.page import report_markdown, write_report
from results.study import LATEST, Study, open_study
from search.terminal import Terminal
from search.variables import Variables


def report_command(variables: Variables, terminal: Terminal) -> int:
    """Write STUDY's report.html and report.md."""
    study = open_study(variables.text("STUDY") or LATEST, but_kind="train")
    with terminal.console.status("writing the report ..."):
        write_reports(study)
    terminal.say(f"report: {shown(study.path / 'report.html')} and report.md beside it")
    terminal.document(report_facts(study))
    return 0


def write_reports(study: Study) -> None:
    """Write report.html and report.md into the study."""
    write_report(study)
    write_atomic(study.path / "report.md", report_markdown(study).encode("utf-8", "surrogateescape"))
