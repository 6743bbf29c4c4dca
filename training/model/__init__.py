"""CRIS (CVPR 2022) and its small students: one model, described by one configuration."""

from training.model.config import CRISConfig
from training.model.cris import CRIS, PHRASE

__all__ = ["CRIS", "PHRASE", "CRISConfig"]
