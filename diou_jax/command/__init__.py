"""The command line: what a user types, and what it is answered with before JAX is imported."""
