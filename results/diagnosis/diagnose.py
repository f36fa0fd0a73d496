"""What is wrong with a recorded run, ranked by what explains most. It reads no file and prints nothing."""

from results.diagnosis.compare import compare_findings
from results.diagnosis.kinds import Diagnosis, confidence_word
from results.diagnosis.level import level_findings
from results.diagnosis.plateau import plateau_finding
from results.diagnosis.run_view import Context, view
from results.diagnosis.start import start_findings
from results.diagnosis.time import time_findings
from results.diagnosis.update import update_findings
from results.trace import RunTrace

__all__ = ["Context", "Diagnosis", "confidence_word", "diagnose", "ranked"]

LEAST_CONFIDENCE = 0.4
"""A guess below is not worth a reader's time."""


def diagnose(trace: RunTrace, *, context: Context) -> list[Diagnosis]:
    """Return what is wrong with the run, the finding that explains most first; [] when nothing was found."""
    if not trace.steps:
        return []
    run = view(trace, context)
    found = [*start_findings(run), *update_findings(run)] if len(run.coarse) else [*update_findings(run)]
    found += level_findings(run)
    plateau = plateau_finding(run, found)
    found += [plateau] if plateau else []
    found += compare_findings(run, found)
    found += time_findings(run)
    return ranked(found)


def ranked(found: list[Diagnosis]) -> list[Diagnosis]:
    """Return the findings by weight, the guesses left out."""
    return sorted((one for one in found if one.confidence >= LEAST_CONFIDENCE), key=lambda one: -one.weight)
