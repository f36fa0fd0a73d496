"""Trials run by Ray Tune: who proposes, who stops, what is recorded, and how many run at once."""

import os

# Ray reads these when it is imported, which no module outside of this package does earlier.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# At its end Tune waits so long for workers that went with their node; the default is ten minutes.
os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "10")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# By default Ray makes workers nice by 15: whatever else runs on the machine would go before the trials.
os.environ.setdefault("RAY_worker_niceness", "0")
