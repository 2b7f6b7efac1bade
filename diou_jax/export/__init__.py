"""Trained detectors as files that JAX runs without diou-jax."""
