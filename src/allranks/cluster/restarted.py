"""Whether these ranks were started before: a restarted rank goes on from its run's own newest checkpoint."""

from collections.abc import Mapping

RESTARTS = "ALLRANKS_RESTARTS"
"""How often our launchers have started all ranks again. A launcher that restarts them by itself counts in
TORCHELASTIC_RESTART_COUNT, anew with each of ours."""


def is_restarted(env: Mapping[str, str]) -> bool:
    """Whether the rank with this environment is of a later start than the run's first."""
    return any(env.get(name, "0") not in ("", "0") for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))
