"""Training: the compiled step, the loop around it, the optimiser, and the answers to what goes wrong."""
