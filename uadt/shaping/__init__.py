"""Shapings: one file a method; `chain` combines them."""

from uadt.shaping.compose import Chain, Clip, KeepSign, MeanOne, Scale, chain
from uadt.shaping.edge import EDGE
from uadt.shaping.entropy_advantage import EntropyAdvantage
from uadt.shaping.gtpo import GRPOS, GTPO
from uadt.shaping.high_entropy_tokens import HighEntropyTokens
from uadt.shaping.seed import SEED
from uadt.shaping.stare import STARE, StareState
from uadt.shaping.uadt import UADT, TaskState
from uadt.shaping.ucas import UCAS

__all__ = [
    "EDGE",
    "GRPOS",
    "GTPO",
    "SEED",
    "STARE",
    "UADT",
    "UCAS",
    "Chain",
    "Clip",
    "EntropyAdvantage",
    "HighEntropyTokens",
    "KeepSign",
    "MeanOne",
    "Scale",
    "StareState",
    "TaskState",
    "chain",
]
