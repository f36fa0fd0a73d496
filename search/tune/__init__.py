"""Trials run by Ray Tune: who proposes, who stops, what is recorded, and how many run at once."""
