"""By how much predictions may be wrong: docs/plan-accuracy.md shows what they were compared with."""

MEMORY_ERROR = 0.10
"""Part of the predicted memory of a rank, at worst."""
TIME_ERROR = 0.25
"""Part of the predicted time of a step: 141 of 142 published rows are within it."""
