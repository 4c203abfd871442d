"""How often Python looks for garbage in our processes, outside of the training loop (see train/garbage.py)."""

import gc


def collect_rarely() -> None:
    """Of a process of ours, as it begins: look for garbage after 50,000 new objects instead of 700.

    Imports make hardly anything but objects that stay, 370,000 of them in a rank. To look through them again and again
    was 30 % of a rank's start: 6.0 s of CPU became 4.1.
    """
    gc.set_threshold(50_000, 20, 20)
