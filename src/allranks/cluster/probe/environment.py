"""Variables that bear on a run, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node
from allranks.secret_names import is_secret_name
from allranks.secrets import REMOVED, known_secrets, without_secrets

_PREFIXES = (
    *("NCCL_", "RCCL_", "GLOO_", "TORCH_", "TORCHELASTIC_", "PYTORCH_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_"),
    *("UCX_", "FI_", "OMP_", "MKL_", "HF_", "ACCELERATE_", "RAY_", "PYTHON"),
)
_NAMES = frozenset(
    [
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "CONDA_PREFIX", "TRANSFORMERS_OFFLINE", "TMPDIR"),
        *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "RES_OPTIONS"),
    ]
)


def look_at_environment(node: Node, reporter: Reporter) -> Iterator[Found]:
    known = known_secrets(node.environment)
    yield {
        "environment": {
            name: REMOVED if is_secret_name(name) else without_secrets(_without_user(name, value), known)
            for name, value in sorted(node.environment.items())
            if name.startswith(_PREFIXES) or name in _NAMES or name.lower().endswith("_proxy")
        }
    }


def _without_user(name: str, value: str) -> str:
    """A proxy's password may have any sign in it, and stand without a scheme before it."""
    return re.sub(r"^(\w+://)?.*@", rf"\1{REMOVED}@", value) if name.lower().endswith("_proxy") else value
