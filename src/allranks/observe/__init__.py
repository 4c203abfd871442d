"""What a run says about itself: its directory, the events of every rank, the progress line, the ranks' output."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# Found when they are asked for: a command that only prints a line does without the classes of events.
_MODULE_OF = {
    "EventFollower": "follow",
    "EventLog": "event_log",
    "Progress": "progress",
    "RunDir": "rundir",
    "RunFollower": "follow",
    "libraries_aside": "libraries",
    "read_events": "follow",
    "redirect_rank_output": "output",
    "say": "enduring",
    "settle_output": "enduring",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # not above: every `from allranks.observe import` of a module asks here first

    found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found
