"""`allranks rehearse`: a whole run of several nodes on this machine's CPU, with a shrunken model."""

from allranks.rehearse.story import Rehearsal, rehearse

__all__ = ["Rehearsal", "rehearse"]
