"""From a config to the objects that it describes. Past this file nobody knows what a config is."""

import jax.numpy as jnp
import ml_collections

from diou_jax.batch_rule import BatchRule
from diou_jax.data import buckets, catalog, shapes, tfds
from diou_jax.detector.detector import Detector
from diou_jax.detector.rules import AnchorRules, DetectionRules, LossRules, PoolingRules, ProposalRules, RoiRules
from diou_jax.errors import UserError
from diou_jax.losses import BOX_LOSSES
from diou_jax.models.network import Network
