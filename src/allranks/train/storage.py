"""Checkpoints where the nodes share no file system: who sees which folder, and bringing a checkpoint to all of them.

Every rank writes its shards where it runs. Resuming needs all of them everywhere, because another topology reads other
parts; so before a load, files are sent to the nodes that lack them, each verified against the marker.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from allranks.checkpoint import commit
from allranks.cluster.identity import Identity
from allranks.errors import CheckpointError

CHUNK_BYTES = 64 * 2**20
"""Sent at a time: large enough for the network, small beside a shard."""

LARGE_BYTES = 10**9
"""Sending more than this takes long enough to say what would avoid it."""


@dataclass(frozen=True)
class Storage:
    """The folder that this rank sees: its `number`, and this rank's place (`part` of `parts`) among those who see it.

    Number 0 is rank 0's. `count` is how many different folders there are; 1 means that all nodes share it.
    """

    number: int
    count: int
    part: int
    parts: int

    @property
    def leads(self) -> bool:
        """Whether this rank acts for its folder."""
        return self.part == 0


ALONE = Storage(0, 1, 0, 1)


def survey(directory: Path, identity: Identity) -> Storage:
    """Find out which ranks see the same `directory`; call it on all ranks.

    Only trying tells: ranks of one node may have a folder each, and those of several nodes any part of their folders in
    common. Rank 0 leaves a file, then do those that do not see it; a folder goes by the first rank whose file is there.
    """
    if identity.alone:
        return ALONE
    directory.mkdir(parents=True, exist_ok=True)
    prefix = f".seen-by-{from_rank_0(uuid.uuid4().hex)}-"
    everyone: list[int | None] = [None]
    marking = [0]
    while None in everyone:
        if identity.rank in marking:
            (directory / f"{prefix}{identity.rank}").touch()
        dist.barrier()
        mine = next((rank for rank in marking if (directory / f"{prefix}{rank}").exists()), None)
        everyone = _from_all(mine)
        marking += [rank for rank, seen in enumerate(everyone) if seen is None]
    if identity.rank in marking:
        (directory / f"{prefix}{identity.rank}").unlink()
    folders = list(dict.fromkeys(everyone))  # in the order of ranks: rank 0's is the first
    together = [rank for rank, folder in enumerate(everyone) if folder == mine]
    return Storage(folders.index(mine), len(folders), together.index(identity.rank), len(together))


def choose(directory: Path, storage: Storage, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of which every byte is to be had as it was written, complete on every node; or None.

    Call it on all ranks. What is passed over is said, with the reason. Ranks share the reading of files between them.
    Raises CheckpointError if there are checkpoints, and none can be used: to begin anew beside them would end in
    replacing steps that are perhaps only on another node's disk.
    """
    cut_off = [path.name for path in commit.incomplete_checkpoints(directory)]
    names = [path.name for path in commit.complete_checkpoints(directory)]
    cut_off, names = from_rank_0((cut_off, names))
    for name in cut_off:
        say(f"{name} has no {commit.MARKER} marker (its save was cut off): not used")
    for name in names:
        problems = fetch(directory / name, storage, say)
        if not problems:
            return directory / name
        for problem in problems:
            say(problem)
        say(f"{name} is damaged: not used{', taking the one before it' if name != names[-1] else ''}")
    if names:
        raise CheckpointError(
            f"none of the {len(names)} checkpoint(s) in {directory} can be used; why is said above. "
            "If nodes keep output_dir on disks of their own, start on all nodes that took part; to begin at step 0, "
            "move the folder away or choose another --output-dir"
        )
    return None


def fetch(checkpoint: Path, storage: Storage, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Make `checkpoint`, which rank 0 sees, whole on every node; call it on all ranks. What has to be sent is said.

    Returns what is wrong with it, the same on every rank: files of which nobody has a sound copy.
    """
    marker, problem = from_rank_0(_read_marker(checkpoint))
    if marker is None:
        return [problem]
    sound, problems = commit.verify_files(checkpoint, marker["files"], part=storage.part, parts=storage.parts)
    reports = _from_all((storage.number, sound, problems))
    holders: dict[str, dict[int, int]] = {name: {} for name in marker["files"]}  # file -> {folder: a rank}
    for rank, (number, names, _) in enumerate(reports):
        for name in names:
            holders[name].setdefault(number, rank)
    lost = [name for name, of in holders.items() if not of]
    if lost:
        said = {text for _, _, texts in reports for name, text in texts.items() if name in lost}
        return sorted(said)
    sizes = [marker["files"][name]["bytes"] for name, of in holders.items() if len(of) < storage.count]
    if sizes:
        say(_announce(checkpoint.name, len(sizes), sum(sizes)))
    for name, of in holders.items():
        if len(of) < storage.count:
            lacking = storage.leads and storage.number not in of
            _send(checkpoint / name, marker["files"][name]["bytes"], min(of.values()), receives=lacking)
    if storage.leads and storage.number != 0:
        commit.write_marker(checkpoint, marker)
    _barrier()
    return []


def _announce(name: str, num_files: int, num_bytes: int) -> str:
    text = f"{name}: sending {num_files} file{'s' * (num_files > 1)} ({num_bytes / 1e9:.2f} GB) to nodes that lack them"
    if num_bytes > LARGE_BYTES:
        text += "; with output_dir on a file system that all nodes share, nothing would have to be sent"
    return text


def _read_marker(checkpoint: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return commit.read_marker(checkpoint), ""
    except CheckpointError as error:
        return None, str(error)


def _send(path: Path, size: int, source: int, *, receives: bool) -> None:
    """Broadcast a file from rank `source`; ranks that `receive` write it. All ranks take part in the broadcast."""
    rank = dist.get_rank()
    reading = path.open("rb") if rank == source else None
    writing = None
    if receives:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.open("wb")
    for start in range(0, size, CHUNK_BYTES):
        chunk = torch.empty(min(CHUNK_BYTES, size - start), dtype=torch.uint8)
        if reading is not None:
            reading.readinto(chunk.numpy().data)
        dist.broadcast(chunk, src=source)
        if writing is not None:
            writing.write(chunk.numpy().data)
    for file in (reading, writing):
        if file is not None:
            file.close()


def spread_marker(checkpoint: Path, storage: Storage, group: dist.ProcessGroup | None) -> None:
    """After a commit, give the other folders the marker too, so that they know which of their shards to keep."""
    if storage.count == 1:
        return
    marker: list[Mapping[str, Any] | None] = [commit.read_marker(checkpoint) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(marker, src=0, group=group)
    if storage.leads and storage.number != 0 and marker[0] is not None:
        commit.write_marker(checkpoint, marker[0])


def from_rank_0(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _from_all(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    box = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
