"""What is wrong with a run, told from its numbers alone: findings, ranked by what explains most."""
