"""Which of several changes did it: combinations to run, and what their losses say. It trains nothing."""
