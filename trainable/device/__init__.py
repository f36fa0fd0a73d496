"""The device of a run: choosing it, its memory and precision, and faster kernels for it."""
