"""How long tests wait for what must come: it ends a hang, and measures nothing on a machine that does much else."""

TIMEOUT_SECONDS = 480.0
