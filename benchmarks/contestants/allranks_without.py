"""allranks with one of its parts taken out, to show what that part is worth.
`python -m benchmarks.contestants.allranks_without PART train CONFIG`
"""

import sys
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


PARTS = {
    "labels-only": without_labels_only,
    "torch-loss": without_torch_loss,
    "prefetch": without_prefetch,
    "set-collections": without_set_collections,
}


if __name__ == "__main__":
    PARTS[sys.argv.pop(1)]()
    from allranks.cli.main import main

    main()
