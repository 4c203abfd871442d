"""allranks: fine-tune a language model on several machines, with every rank accounted for."""

import sys

__version__ = "0.1.0"

# The public names (docs/python.md), and where they are: found when they are asked for, so that `import allranks` costs
# nothing. Type checkers read __init__.pyi.
_PUBLIC = {
    "allranks.api": ("TrainResult", "TrainingError", "load_config", "read_events"),
    "allranks.config": ("RunConfig",),
    "allranks.errors": (
        "AllranksError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DiskError",
        "OutOfMemoryError",
        "RefusedError",
        "UsageError",
    ),
    "allranks.observe.events": (
        "CheckpointEvent",
        "CommunicationEvent",
        "ErrorEvent",
        "EvalEvent",
        "Event",
        "ExitEvent",
        "MemoryEvent",
        "PhaseEvent",
        "PlanEvent",
        "StepEvent",
        "StragglerEvent",
        "TimeLimitEvent",
        "UnknownEvent",
        "WarningEvent",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(["__version__", "train", *_MODULE_OF])


def __getattr__(name: str) -> object:
    if name != "train" and name not in _MODULE_OF:
        raise AttributeError(f"module 'allranks' has no attribute {name!r}")
    import importlib  # not above: every `from allranks import` of a module asks here first

    if name == "train":  # the package, which can be called
        return importlib.import_module("allranks.train")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if getattr(sys, "argv", [""])[:1] == ["-m"]:  # so it is while Python looks for the module that `-m` names
    from allranks.entry_points import begin_as_program

    begin_as_program(sys.argv, sys.orig_argv)
