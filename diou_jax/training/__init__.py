"""Training: the compiled step, the loop, the optimiser, and the reaction to faults."""
