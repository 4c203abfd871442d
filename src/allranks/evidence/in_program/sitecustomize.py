"""Python runs this before anyone's program, if that is Python's; see hook.py. What the user has of this name follows.

Whatever goes wrong here must not show in the program, nor in what it starts, by a path or a variable either.
"""

import os
import sys


def _answer():  # type: () -> None
    """Also for a Python that knows no annotations: what cannot be read there is not imported."""
    output_dir = os.environ.pop("ALLRANKS_ANSWERS", "")
    rank = os.environ.get("RANK", "")
    if output_dir and rank.isdigit():
        from allranks_answers import answer

        answer(int(rank), output_dir)
        # Where a collective aborts the process, or it crashes, its log has the place; as PYTHONFAULTHANDLER=1 does it.
        import faulthandler

        if not faulthandler.is_enabled():
            faulthandler.enable()


def _leave():  # type: () -> None
    """The program's paths are as the user gave them."""
    folder = os.path.dirname(__file__)  # noqa: PTH120
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != folder]
    os.environ.pop("PYTHONPATH", None)
    if given:
        os.environ["PYTHONPATH"] = os.pathsep.join(given)


if __name__ == "sitecustomize":  # and not where its text is imported as a part of allranks
    try:  # noqa: SIM105
        _answer()
    except Exception:
        pass
    _leave()
    del sys.modules[__name__]
    import sitecustomize  # noqa: F401
