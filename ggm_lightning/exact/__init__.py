"""Proofs by enumeration, of the families here and of your own: `prove(model)`; docs/extend/exact.md."""

from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Equal
from ggm_lightning.exact.noise import Noise
from ggm_lightning.exact.proof import prove
from ggm_lightning.exact.records import Check, Disproved, Proof

__all__ = ["Check", "Disproved", "Equal", "JointLaw", "Noise", "Proof", "prove"]
