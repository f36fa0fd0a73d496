"""Whether a candidate is better than the baseline on fresh seeds."""
