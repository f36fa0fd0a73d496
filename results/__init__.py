"""A study on disk and what can be said from it: tables, ranking, export. No torch, no Ray."""
