"""TensorBoard, Weights & Biases, MLflow and Trackio, told of a run from its events.

Each tracker is a process of its own beside rank 0, which reads rank 0's event file and talks to its service. Whatever
happens to it (no network, a full disk, a crash in its library), the training neither waits for it nor ends with it.
"""

from allranks.observe.trackers.choice import chosen_trackers, refuse_missing_packages
from allranks.observe.trackers.start import Trackers

__all__ = ["Trackers", "chosen_trackers", "refuse_missing_packages"]
