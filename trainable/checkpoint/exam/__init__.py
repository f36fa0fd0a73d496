"""What a checkpoint file tells of the run that made it: measured, not judged."""
