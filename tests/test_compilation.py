"""XLA's flags."""

import os
import subprocess
import sys

import pytest

from diou_jax import compilation


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, "--xla_gpu_exclude_nondeterministic_ops=true"),
        ("--xla_dump_to=/x", "--xla_dump_to=/x --xla_gpu_exclude_nondeterministic_ops=true"),
        ("--xla_gpu_exclude_nondeterministic_ops=false", "--xla_gpu_exclude_nondeterministic_ops=false"),
    ],
)
def test_what_the_user_has_set_stays(monkeypatch, given, wanted):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given:
        monkeypatch.setenv("XLA_FLAGS", given)
    compilation.set_flags()
    assert os.environ["XLA_FLAGS"] == wanted


def test_a_run_that_python_starts_has_the_flags_too(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    monkeypatch.setattr(compilation, "earn_kernels", lambda folder: [])
    compilation.prepare.__wrapped__("")  # without its memory of earlier calls
    assert os.environ["XLA_FLAGS"].endswith(compilation.FLAGS["xla_gpu_exclude_nondeterministic_ops"])


def test_this_xla_knows_them_all():
    """It ends the process where it does not."""
    code = "from diou_jax import compilation; compilation.set_flags(); import jax; print(jax.numpy.ones(3).sum())"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "3.0\n", done.stderr
