"""XLA's flags for tests, which compile a thousand programs that run once.

LLVM's optimisation takes a fifth of their time, and XLA's newer way to compile fusions a third. CI repeats proofs as
users' programs are compiled, see .ci/run.
"""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
