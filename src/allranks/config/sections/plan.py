"""Key of what is predicted of a run."""

from typing import Literal

from allranks.config.sections.section import Section


class PlanConfig(Section):
    """What is predicted of a run before it starts."""

    plan: Literal["on", "off"] = "on"
    """Before the start, predict whether the ranks' memory is enough: warn where it may not be, and refuse where it
    cannot be ([Plan](plan.md)); `off` starts without."""

    @property
    def predicts(self) -> bool:
        """Whether a start is predicted."""
        return self.plan == "on"
