"""What a command of ours ends with. docs and `allranks --help` promise these to scripts and schedulers."""

DONE = 0
"""Done."""
FAILED = 1
"""The run failed, or what else the command was to do."""
USAGE = 2
"""Wrong usage: of the command line, of the config, or of the data that it names."""
REFUSED = 3
"""Refused before the start: nodes are missing or differ, or one is not as it should be."""
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
"""Preempted: a signal stopped it, a checkpoint is saved; start it again."""
INTERRUPTED = 130  # as shells say it: 128 + SIGINT
"""Interrupted by Ctrl-C, with nothing to save, or a second time."""
