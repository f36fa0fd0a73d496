"""`make preflight`: runs the checks that precede every search and train, and prints them all."""

from dataclasses import asdict

from search.options import Options
from search.setup.plan import make_plan
from search.setup.preflight_run import PREFLIGHT_FAILED, preflight_of, run_checks
from search.terminal.console import Preparing, Terminal


def preflight_command(options: Options, terminal: Terminal) -> int:
    """Check the set-up that a search of SPACE would use; 1 when a check fails."""
    with Preparing(terminal.console) as progress:
        plan = make_plan(options, kind="search", progress=progress)
    terminal.say(*plan.loaded.text_lines)
    checks = run_checks(preflight_of(plan), terminal, every=True)
    passed = all(check.status != "fail" for check in checks)
    terminal.document({"passed": passed, "checks": [asdict(check) for check in checks]})
    return 0 if passed else PREFLIGHT_FAILED
