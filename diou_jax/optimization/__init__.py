"""Optimisation: the training state, the rules that change it, and their schedule."""
