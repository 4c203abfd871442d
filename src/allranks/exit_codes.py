"""What a command of ours ends with. docs and `allranks --help` promise these to scripts and schedulers."""

DONE = 0
FAILED = 1
USAGE = 2  # of the command line, of the config, or of the data that it names
REFUSED = 3  # before the start: nodes differ, or one is not as it should be
PREEMPTED = 75  # a checkpoint is saved, start me again (EX_TEMPFAIL of sysexits.h: try again later)
INTERRUPTED = 130  # by Ctrl-C, as shells say it (128 + SIGINT)
