"""Training: the compiled step, the loop, and the reaction to faults."""
