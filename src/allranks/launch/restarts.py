"""Whether all ranks are to be started again after a hang (`on_hang: restart`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from allranks.doctor.diagnosis import HOPELESS, Restart, judged
from allranks.doctor.failures import failures_of, restart_of, step_before
from allranks.findings import Finding
from allranks.live.state import LiveTable
from allranks.observe import RunDir


@dataclass
class Restarts:
    """Node 0's judgement on the hangs of all attempts. What hangs in the same way after the same step twice would do so
    again, in this start or in one before."""

    run: RunDir
    most: int
    hangs: list[Restart] = field(default_factory=list)

    def after(self, hang: Finding, table: LiveTable) -> int | None:
        """How often all ranks will have been started again with the restart that `hang` calls for; None for none.

        `table` counts the launcher's own restarts, too.
        """
        now = restart_of(hang, step_before(self.run, table.step))
        found = judged(now, [*self.hangs, *(one.restart for one in failures_of(self.run))])
        self.hangs.append(now)
        num_restarts = table.attempt or 1
        return None if found.verdict == HOPELESS or num_restarts > self.most else num_restarts
