"""What the user's own torchrun was told on this node, which it does not hand on to its ranks: its command line.

torchrun takes 1 node where --nnodes is missing, and joins nodes that were told other numbers
(https://docs.pytorch.org/docs/stable/elastic/run.html): each rank sees its parent's words, and no other node's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import psutil

from allranks.cluster.identity import Identity
from allranks.cluster.node_variables import LOOPBACK
from allranks.errors import UsageError

_MODULES = ("torch.distributed.run", "torch.distributed.launch")
_MEETING = ("master-addr", "rdzv-endpoint")
PROCESSES = "--nproc-per-node of torchrun"
_FLAGS = ("m", "module", "standalone", "no-python", "run-path", "virtual-local-rank")
"""Without a value; what follows the options is the program."""


def told_to_torchrun(env: Mapping[str, str] = os.environ, words: Sequence[str] | None = None) -> dict[str, str]:
    """The options of the user's torchrun that started this process, by their names with `-`, from its command line and
    from PET_*. Empty where that is not who did it, or cannot be read. `words`: that command line."""
    if "TORCHELASTIC_RUN_ID" not in env or "ALLRANKS_RUN_ID" in env:
        return {}
    options = _options(_parents_words() if words is None else words)
    if options is None:
        return {}
    variables = {name: env.get(f"PET_{name.replace('-', '_').upper()}") for name in ("nnodes", *_MEETING)}
    return {**{name: value for name, value in variables.items() if value}, **options}


def refuse_nodes_left_out(identity: Identity, told: Mapping[str, str]) -> None:
    """Raises UsageError where torchrun was told where nodes meet, and not how many: each would train alone."""
    if identity.local_world_size != identity.world_size or "nnodes" in told:
        return
    for name in _MEETING:
        if name in told and not told[name].startswith(LOOPBACK):
            raise UsageError(
                f"torchrun was given --{name} {told[name]} and no --nnodes, which is then 1: each node would train "
                "alone; give --nnodes N on all nodes, or --nnodes 1 to train on this node alone"
            )


def same_on_all_nodes(told: Mapping[str, str], env: Mapping[str, str], num_gpus: int) -> dict[str, str]:
    """What the user's torchruns must have been told alike, to be compared between the ranks. Processes may differ where
    the nodes' GPUs do."""
    if not told:
        return {}
    low, _, high = told.get("nnodes", "1").partition(":")
    local = env.get("LOCAL_WORLD_SIZE", "")
    per_node = "one for each GPU of the node" if num_gpus and local == str(num_gpus) else local
    return {
        "--nnodes of torchrun": low if high in ("", low) else f"{low}:{high}",
        PROCESSES: per_node,
    }


def _options(words: Sequence[str]) -> dict[str, str] | None:
    """None where these are not the words of a torchrun."""
    starts = [place for place, word in enumerate(words) if word in _MODULES or PurePath(word).name == "torchrun"]
    if not starts:
        return None
    options: dict[str, str] = {}
    rest = list(words[starts[0] + 1 :])
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        name = name.replace("_", "-")
        if not equals and name not in _FLAGS and rest:
            value = rest.pop(0)
        options[name] = value
    return options


def _parents_words() -> list[str]:
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent is not None else []
    except (psutil.Error, OSError):  # of another user, or gone
        return []
