"""The command line: it is parsed, and mistakes are reported, before JAX is imported."""
