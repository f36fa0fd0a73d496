"""From options to a plan that can run: inputs loaded and checked, the study reserved and recorded."""
