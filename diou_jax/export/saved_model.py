"""Exported programs as a SavedModel of TensorFlow, whose operation XlaCallModule runs StableHLO.

`jax.experimental.jax2tf` makes the same operation, but in the version of StableHLO that JAX exports, which TensorFlow's
releases learn months later. Here programs are written in the oldest version that they can be.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from diou_jax.data.view import Size
from diou_jax.errors import UserError
from diou_jax.files import draft_of, printable

# StableHLO of 2024, the first with the batched gathers of resizing; later versions read it for five years.
STABLEHLO = "1.1.0"


def write(
    folder: str | os.PathLike,
    programs: Mapping[Size, export.Exported],
    weights: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a SavedModel with a signature ``detect_HEIGHTxWIDTH`` for each program, and ``metadata.json``.

    Args:
      folder: the folder to make.
      programs: programs by height and width of their images.
      weights: the arrays that they take; the SavedModel holds them once.
      metadata: JSON values.

    Raises:
      UserError: if TensorFlow is not installed, or the folder exists or cannot be written.
    """
    try:
        import tensorflow as tf
        from tensorflow.compiler.tf2xla.python import xla
    except ImportError:
        raise UserError("a SavedModel needs TensorFlow: pip install 'diou-jax[saved_model]'") from None
    folder = pathlib.Path(folder)
    if os.path.lexists(folder):
        raise UserError(f"--output {printable(folder)} exists already; name another folder")
    draft = draft_of(folder)
    model = tf.Module()
    model.weights_ = {name: tf.Variable(x, name=name.replace("/", ".")) for name, x in weights.items()}
    signatures = {
        "detect_{}x{}".format(*size): _signature(tf, xla, program, model.weights_) for size, program in programs.items()
    }
    try:
        shutil.rmtree(draft, ignore_errors=True)
        tf.saved_model.save(model, str(draft), signatures)
        (draft / "metadata.json").write_text(json.dumps(metadata, indent=1, allow_nan=False))
        os.replace(draft, folder)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"--output {printable(folder)} cannot be written: {error}") from None


def _signature(tf, xla, program, weights):
    """The function of TensorFlow that calls a program with `weights`."""
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        module = stablehlo.deserialize_portable_artifact(context, program.mlir_module_serialized)
        artifact = stablehlo.serialize_portable_artifact(module, STABLEHLO)
    _, *inputs = jax.tree.unflatten(program.in_tree, program.in_avals)[0]
    names = ("images", "sizes")

    def detect(*given):
        arguments = jax.tree.leaves(((dict(weights), *given), {}))
        results = xla.call_module(
            [arguments[index] for index in program.module_kept_var_idx],
            version=program.calling_convention_version,
            module=artifact,
            Sout=[aval.shape for aval in program.out_avals],
            Tout=[aval.dtype.name for aval in program.out_avals],
            platforms=[platform.upper() for platform in program.platforms],
        )
        return jax.tree.unflatten(program.out_tree, results)

    specs = [tf.TensorSpec(aval.shape, aval.dtype.name, name=name) for aval, name in zip(inputs, names)]
    return tf.function(detect, input_signature=specs, autograph=False).get_concrete_function()
