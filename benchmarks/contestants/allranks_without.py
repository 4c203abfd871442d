"""allranks with one of its parts taken out, to show what that part is worth.
`python -m benchmarks.contestants.allranks_without PART train CONFIG`
"""

import os
import sys
import time
from types import SimpleNamespace


def without_labels_only() -> None:
    """Logits at every position, as a plain loop makes them; only then are those with a label picked out."""
    import allranks.model.build

    allranks.model.build.takes_logits_to_keep = lambda model: False


def without_torch_loss() -> None:
    """The chunked loss is made by our function also where PyTorch's covers the case."""
    import allranks.model.chunked

    allranks.model.chunked.torchs_covers = lambda *case: False


def without_prefetch() -> None:
    """Each micro-batch is made when the step asks for it."""
    import allranks.train.feed

    class WhenAsked:
        """An executor that does a job only when its result is asked for."""

        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def submit(self, job, *args):
            return SimpleNamespace(result=lambda: job(*args), cancel=lambda: None)

    allranks.train.feed.ThreadPoolExecutor = WhenAsked


def without_set_collections() -> None:
    """Python collects its garbage whenever it likes."""
    from contextlib import nullcontext

    from allranks.train.garbage import Garbage

    Garbage.held_back = lambda self: nullcontext()
    Garbage.after_step = lambda self, step: 0.0


def without_live_by_doses() -> None:
    """The ranks are watched not at all in some slots of the clock, and as usual or more in others."""
    from benchmarks.live_doses import watch_by_doses

    watch_by_doses()


def without_live_after_a_while() -> None:
    """All threads that watch the ranks are ended so many seconds after they began, by an error that they do not catch.

    A thread notices when it next runs.
    """
    import ctypes
    import threading

    from allranks.launch.node import live

    def kill():
        time.sleep(float(os.environ[KILL_AFTER_SECONDS]))
        while watching := [one for one in threading.enumerate() if one.name.startswith("live")]:
            for thread in watching:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            time.sleep(0.2)

    enter = live.LiveNode.__enter__

    def entered(self):
        threading.Thread(target=kill, daemon=True).start()
        return enter(self)

    live.LiveNode.__enter__ = entered


KILL_AFTER_SECONDS = "BENCHMARK_KILL_AFTER_SECONDS"

PARTS = {
    "labels-only": without_labels_only,
    "torch-loss": without_torch_loss,
    "prefetch": without_prefetch,
    "set-collections": without_set_collections,
    "live-by-doses": without_live_by_doses,
    "live-after-a-while": without_live_after_a_while,
}


if __name__ == "__main__":
    PARTS[sys.argv.pop(1)]()
    from allranks.cli.main import main

    main()
