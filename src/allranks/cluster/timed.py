"""What a launcher and its ranks say to each other of a run that is only to be timed."""

TIMED = "ALLRANKS_TIMED"
"""Set for the ranks of such a run: they save nothing, whatever ends them, and write no result."""
