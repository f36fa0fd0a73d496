"""The edge: the command line, Ray Tune, the terminal."""
