"""The report's numbers, computed once from a study's files."""
