"""What is wrong with a recorded run, ranked by what explains most. It reads no file and prints nothing."""

from results.diagnosis.findings import Diagnosis
from results.diagnosis.rules.compare import compare_findings
from results.diagnosis.rules.level import level_findings
from results.diagnosis.rules.plateau import plateau_finding
from results.diagnosis.rules.start import start_finding
from results.diagnosis.rules.time import time_findings
from results.diagnosis.rules.update import update_findings
from results.diagnosis.run_view import Context, view
from results.diagnosis.trace import RunTrace

LEAST_CONFIDENCE = 0.4
"""A guess below is not worth a reader's time."""


def diagnose(trace: RunTrace, *, context: Context) -> list[Diagnosis]:
    """Return what is wrong with the run, the finding that explains most first; [] when nothing was found."""
    if not trace.steps:
        return []
    run = view(trace, context)
    start = start_finding(run)
    found = [*([start] if start else []), *update_findings(run), *level_findings(run)]
    plateau = plateau_finding(run, found)
    if plateau:
        found = [*(one for one in found if one.kind != plateau.kind), plateau]
    found += compare_findings(run, found)
    found += time_findings(run)
    return ranked(found)


def ranked(found: list[Diagnosis]) -> list[Diagnosis]:
    """Return the findings by weight, the guesses left out."""
    return sorted((one for one in found if one.confidence >= LEAST_CONFIDENCE), key=lambda one: -one.weight)
