"""Every rank of a run while it goes on: one table of what each does, and what is to be said of it."""

from allranks.live.state import LiveTable, NodeState, RankState

__all__ = ["LiveTable", "NodeState", "RankState"]
