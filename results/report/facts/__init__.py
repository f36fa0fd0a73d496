"""The report's facts, computed once from a study's files."""
