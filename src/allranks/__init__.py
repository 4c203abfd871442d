"""allranks: fine-tune a language model on several machines, with every rank accounted for."""

import sys

__version__ = "0.1.0"

if getattr(sys, "argv", [""])[:1] == ["-m"]:  # so it is while Python looks for the module that `-m` names
    from allranks.entry_points import begin_as_program

    begin_as_program(sys.argv, sys.orig_argv)
