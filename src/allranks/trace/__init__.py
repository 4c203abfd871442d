"""Memory by running the engine on nothing: its own code, on tensors without values and ranks that are not there."""

from allranks.trace.beside import traced
from allranks.trace.traced import traced_memory

__all__ = ["traced", "traced_memory"]
