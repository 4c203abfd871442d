"""Which environment variables cross to the other nodes: ssh hands none on, and half of them would be wrong there."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from allranks.errors import UsageError

# What steers transport, computation, models and trackers. Names of devices (CUDA_VISIBLE_DEVICES), paths to programs
# and whatever describes the machine or the session are each node's own.
_PREFIXES = (
    "ACCELERATE_",
    "ALLRANKS_",
    "COMET_",
    "CUDA_",
    "DEEPSPEED_",
    "DS_",
    "FI_",
    "GLOO_",
    "HF_",
    "HUGGING_FACE_",
    "HUGGINGFACE_",
    "KMP_",
    "MKL_",
    "MLFLOW_",
    "NCCL_",
    "NVTE_",
    "OMP_",
    "PYTORCH_",
    "RDMAV_",
    "TOKENIZERS_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TRACKIO_",
    "TRANSFORMERS_",
    "TRITON_",
    "UCX_",
    "WANDB_",
    "XLA_",
)
_NAMES = {"LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"}
_PROXIES = {"http_proxy", "https_proxy", "no_proxy", "all_proxy"}
_OWN = {"CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "CUDA_DEVICE_ORDER"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def exported(env: Mapping[str, str], extra: Sequence[str] = ()) -> dict[str, str]:
    """The variables of `env` that every node gets, and those of `--export NAME` or `--export NAME=VALUE`.

    Raises UsageError for a name that is none, or that is not set here.
    """
    found = {
        name: value
        for name, value in env.items()
        if name not in _OWN and (name.startswith(_PREFIXES) or name in _NAMES or name.lower() in _PROXIES)
    }
    for words in extra:
        name, equals, value = words.partition("=")
        if not _NAME.fullmatch(name):
            raise UsageError(f"--export {words}: {name!r} is not the name of a variable")
        if not equals and name not in env:
            raise UsageError(f"--export {name}: it is not set here; set it, or give --export {name}=VALUE")
        found[name] = value if equals else env[name]
    return dict(sorted(found.items()))


def working_directory(env: Mapping[str, str] = os.environ) -> str:
    """As the user knows it: behind a link such as /home, the real path may exist on this node only."""
    known = env.get("PWD", "")
    with contextlib.suppress(OSError):  # of a shell elsewhere: outside of this container, or before a `cd` of another
        if Path(known).is_absolute() and Path(known).samefile("."):
            return known
    try:
        return str(Path.cwd())
    except OSError:
        raise UsageError("the current directory does not exist any more: change to one that all nodes have") from None
