"""What a step sends: the collectives that this rank issued in it, read from PyTorch's flight recorder.

The recorder notes every collective as it is issued, in C++, whoever asks for it (DDP's reducer, FSDP, DeepSpeed), and
is on unless TORCH_FR_BUFFER_SIZE is 0. Steps that are not counted cost nothing more; one that is costs some
milliseconds, for its notes are read after each micro-batch: the recorder keeps only so many (2000 by default).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from allranks.observe import EventLog
from allranks.observe.events import CommunicationEvent
from allranks.plan.communication import WHOLE_MESSAGE, Collective, over_all_ranks, sentence, tally

# The names that the recorder's notes contain. The order counts: `_all_gather_base`, `allreduce_coalesced`, …
_OPS = {
    "reduce_scatter": "reduce_scatter",
    "all_reduce": "all_reduce",
    "allreduce": "all_reduce",
    "all_gather": "all_gather",
    "allgather": "all_gather",
    "all_to_all": "all_to_all",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "scatter": "scatter",
    "gather": "gather",
    "barrier": "barrier",
    "reduce": "reduce",
}
# The recorder writes types as C++ names them.
_ITEM_BYTES = {
    "Float": 4,
    "Double": 8,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Byte": 1,
    "Char": 1,
    "Bool": 1,
    "Float8_e4m3fn": 1,
    "Float8_e5m2": 1,
    "ComplexFloat": 8,
    "UInt16": 2,
    "UInt32": 4,
    "UInt64": 8,
}
_TYPES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
_TYPES |= {"Int": "int32", "Short": "int16", "Byte": "uint8", "Char": "int8", "Bool": "bool"}


CHECKPOINT_GROUP = "checkpoint"
"""The group of saves, which go on behind the steps and are no part of them."""


def steps_to_count(first: int, last: int, compressed_from: int | None = None) -> set[int]:
    """Which of the steps `first` to `last` of this start to count: the third, for in the first two DDP arranges its
    buckets; and where gradients are only compressed after so many steps (`compressed_from`), one of those too."""
    counted = {min(first + 2, last)}
    if compressed_from is not None and first + compressed_from + 1 <= last:
        counted.add(first + compressed_from + 1)
    return counted


@dataclass
class TrafficCounter:
    """Counts what the chosen `steps` send. `nodes`: the node of each rank of the run."""

    rank: int
    nodes: Sequence[int]
    steps: set[int]
    events: EventLog
    say: Callable[[str], None]
    told: str = ""
    """The newest count in words; empty while there is none."""
    between_nodes_bytes: int | None = None
    """Of a step, by the newest count that is whole; None while there is none."""
    _seen: dict[str, int] = field(default_factory=dict)
    _collectives: list[Collective] | None = None
    _missed: int = 0
    _unreadable: str = ""

    def begin(self, step: int) -> None:
        """Call it before the first collective of a step."""
        if step in self.steps and dist.is_initialized():
            self._collectives = []
            self.read()
            self._collectives, self._missed = [], 0  # that was before the step

    def read(self) -> None:
        """Take what was noted since; call it often enough for the recorder not to forget."""
        if self._collectives is None:
            return
        try:
            for backend, notes in _notes().items():
                seen = self._seen.get(backend, -1)
                fresh = [note for note in notes if note["record_id"] > seen]
                if fresh:
                    self._missed += fresh[0]["record_id"] - seen - 1
                    self._seen[backend] = fresh[-1]["record_id"]
                found = list(_collectives(fresh))
                self._collectives += found
                # Such as a send from one rank to another, which nothing here asks for.
                self._missed += sum(one.op not in WHOLE_MESSAGE and one.num_bytes > 0 for one in found)
        except (KeyError, TypeError, ValueError) as error:
            # The recorder's format is nobody's promise, and a count is no reason to end a run.
            self._unreadable = f"{type(error).__name__} {error}"

    def end(self, step: int) -> None:
        """Put the ranks' counts together, as an event of every rank and a line of rank 0's; call it on all ranks."""
        if self._collectives is None:
            return
        self.read()
        mine = tally(self._collectives, self.rank, self.nodes)
        missed, self._collectives = self._missed, None
        world: list[Any] = [None] * len(self.nodes)
        dist.all_gather_object(world, (mine, missed, self._unreadable))
        kinds, sent = over_all_ranks([tallied for tallied, _, _ in world], self.nodes)
        missed = sum(missing for _, missing, _ in world)
        unreadable = next((why for _, _, why in world if why), "")
        self.events.write(
            CommunicationEvent(
                step=step,
                counted=bool(kinds) and not missed and not unreadable,
                between_nodes_bytes=round(sum(sent)),
                node_sends_bytes=tuple(round(one) for one in sent),
                collectives=tuple(_event(kind) for kind in mine),
            )
        )
        if len(sent) < 2:
            return
        if unreadable:
            self.told = f"not counted: this PyTorch's flight recorder cannot be read ({unreadable})"
        elif not kinds:
            self.told = "not counted: PyTorch's flight recorder is off (TORCH_FR_BUFFER_SIZE=0)"
        else:
            more = f"; {missed} collectives were not counted: set a larger TORCH_FR_BUFFER_SIZE" if missed else ""
            self.told = sentence(kinds, sent) + more
            self.between_nodes_bytes = None if missed else round(sum(sent))
        if self.rank == 0:
            self.say(f"between nodes: step {step}: {self.told}")


def _event(kind: Any) -> dict[str, Any]:
    return asdict(kind) | {"between_nodes_bytes": round(kind.between_nodes_bytes)}


def _notes() -> dict[str, list[dict[str, Any]]]:
    """What the recorders hold, oldest first: gloo has one of its own, NCCL another."""
    bound = torch._C._distributed_c10d
    found = {}
    for backend, dump in (("gloo", "_dump_fr_trace_json"), ("nccl", "_dump_nccl_trace_json")):
        if hasattr(bound, dump):
            # Arguments: with the collectives; not only those under way.
            found[backend] = json.loads(getattr(bound, dump)(True, False)).get("entries", [])
    return found


def _collectives(notes: list[dict[str, Any]]) -> Iterator[Collective]:
    members = _members()
    for note in notes:
        backend, _, name = note["profiling_name"].partition(":")
        op = op_of(name)
        side = WHOLE_MESSAGE.get(op, "input")
        sizes, types = note[f"{side}_sizes"], note[f"{side}_dtypes"]
        group, meaning = note["process_group"]
        if meaning == CHECKPOINT_GROUP:
            continue
        num_bytes = sum(_numel(size) * _ITEM_BYTES[kind] for size, kind in zip(sizes, types, strict=True))
        dtype = _TYPES.get(types[0], types[0]) if types else "none"
        # "undefined" is what PyTorch calls groups whose maker gave them no name, as DeepSpeed's.
        name = meaning if meaning not in ("", "undefined") else "unnamed"
        yield Collective(op, backend, name, members[group], dtype, num_bytes)


def op_of(name: str) -> str:
    """The collective that a note's name means: `_all_gather_base` is an all_gather."""
    return next((op for part, op in _OPS.items() if part in name), name)


def _members() -> dict[str, tuple[int, ...]]:
    """Group's name -> its ranks in order, of all groups that this rank is in."""
    world = dist.distributed_c10d._world
    return {name: tuple(dist.get_process_group_ranks(group)) for group, name in world.pg_names.items()}


def _numel(size: list[int]) -> int:
    total = 1
    for length in size:
        total *= length
    return total
