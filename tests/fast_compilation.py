"""XLA's flags for tests, which compile a thousand programs that run once.

LLVM's optimisation takes a fifth of their time, and XLA's newer way to compile fusions a third. Proofs are compiled as
users' programs are: rounding differs, and their limits leave little room.
"""

import functools
import importlib.metadata

import jax

FLAGS = "--xla_backend_optimization_level=0"
AS_A_RUN = {"xla_backend_optimization_level": 3}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
    AS_A_RUN["xla_cpu_use_fusion_emitters"] = True

# `jax.jit` as in a run, whatever `FLAGS` say.
as_a_run = functools.partial(jax.jit, compiler_options=AS_A_RUN)
