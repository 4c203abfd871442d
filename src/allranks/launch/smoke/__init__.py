"""`allranks train --smoke`: two steps on the real nodes, then go or no-go, with a certificate."""

from allranks.launch.smoke.config import smoke_config
from allranks.launch.smoke.verdict import Smoke, clear_earlier_smoke, smoke_variables

__all__ = ["Smoke", "clear_earlier_smoke", "smoke_config", "smoke_variables"]
