"""What a run says about itself: its directory, the events of every rank, the progress line, the ranks' output."""

from allranks.observe.enduring import say, settle_output
from allranks.observe.event_log import EventLog
from allranks.observe.follow import EventFollower, RunFollower, read_events
from allranks.observe.libraries import libraries_aside
from allranks.observe.output import redirect_rank_output
from allranks.observe.progress import Progress
from allranks.observe.rundir import RunDir

__all__ = [
    "EventFollower",
    "EventLog",
    "Progress",
    "RunDir",
    "RunFollower",
    "libraries_aside",
    "read_events",
    "redirect_rank_output",
    "say",
    "settle_output",
]
