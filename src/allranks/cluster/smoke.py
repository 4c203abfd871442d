"""What a launcher and its ranks say to each other of a smoke run."""

SMOKE = "ALLRANKS_SMOKE"
"""Set for the ranks of a smoke run."""
NUM_STEPS = 2
EVIDENCE = "smoke.json"
"""What all ranks saw, in the log folder of each node."""
