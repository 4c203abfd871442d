"""Faults put into ranks of a real training, and when they happened."""

import os
import shutil
from pathlib import Path

import allranks
from tests.cluster import spoilt_rank
from tests.cluster.training import Training

# Where ranks find this repository's allranks and rank_faults.py, wherever they start.
PYTHONPATH = os.pathsep.join(str(path) for path in (Path(allranks.__path__[0]).parent, Path(__file__).parents[2]))


def inject(training: Training, fault: str) -> dict[str, str]:
    """The environment with which a node's ranks have that fault of spoilt_rank.py, by its name there."""
    assert fault in spoilt_rank.FAULTS
    folder = training.config.parent / "fault"
    folder.mkdir(exist_ok=True)
    shutil.copy(spoilt_rank.__file__, folder / "sitecustomize.py")
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), PYTHONPATH]),
        "FAULT": fault,
        "FAULT_MOMENT": str(_moment(training)),
    }


def happened(training: Training) -> float:
    """When it happened, in seconds since 1970."""
    return float(_moment(training).read_text())


def _moment(training: Training) -> Path:
    return training.config.parent / "fault" / "moment"
