"""Is the run what was asked for? What its ranks say of themselves after the first step, judged."""

from allranks.verify.check import Check
from allranks.verify.checks import findings, judge, sentence
from allranks.verify.record import Blocks, Connection, Proof, RankProof, read_proof

__all__ = [
    "Blocks",
    "Check",
    "Connection",
    "Proof",
    "RankProof",
    "findings",
    "judge",
    "read_proof",
    "sentence",
]
