"""What Python 3.13 and later print of DCP's streams after a write that failed: they flush a file that is closed.

The failure itself is told as a step that is not saved; this says nothing more, and looks like a second one.
"""

import sys

_STREAM = ("torch.distributed.checkpoint.filesystem", "NoCloseWriter")


def quiet_streams() -> None:
    """From now on leave that out; all else that a finalizer raises goes the way that it went before."""
    before = sys.unraisablehook

    def hook(raised: "sys.UnraisableHookArgs") -> None:
        kind = type(raised.object)
        if not (isinstance(raised.exc_value, ValueError) and (kind.__module__, kind.__name__) == _STREAM):
            before(raised)

    sys.unraisablehook = hook
