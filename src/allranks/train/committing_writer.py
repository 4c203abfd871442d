"""DCP's file writer for checkpoints that are committed by `commit.MARKER`.

Every rank writes its own shards and hashes them; DCP's second phase, on rank 0 only and after all ranks have reported
their writes, adds the global metadata and then the marker. So a save that any rank did not finish is never committed,
whether it runs in the foreground or behind the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from allranks import durable
from allranks.checkpoint import commit
from allranks.checkpoint.dcp.metadata import write_metadata
from allranks.train.save_failure import save_told


@dataclass(frozen=True)
class HashedWrite(WriteResult):
    """A write result that carries the digest of the file it landed in to rank 0."""

    digest: dict[str, Any]


class CommittingWriter(dcp.FileSystemWriter):
    """DCP's file writer, plus digests by every rank and the marker by the coordinator as the very last write.

    `elsewhere`: this rank's folder is not the coordinator's, which brings its own to the disk.
    """

    def __init__(
        self, checkpoint: Path, facts: dict[str, Any], *, elsewhere: bool = False, needed_bytes: int | None = None
    ) -> None:
        super().__init__(checkpoint, overwrite=True, sync_files=True)
        self.checkpoint = checkpoint
        self.facts = facts
        self.elsewhere = elsewhere
        self.needed_bytes = needed_bytes

    def write_data(self, plan: Any, planner: Any) -> Any:
        # On this rank: what DCP gathers at the coordinator no longer tells which disk it was, nor why.
        with save_told(self.checkpoint, self.needed_bytes):
            return self._write_and_hash(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with save_told(self.checkpoint, self.needed_bytes):
            self._commit(metadata, results)

    def _write_and_hash(self, plan: Any, planner: Any) -> Any:
        written = super().write_data(plan, planner).wait()
        digests: dict[str, dict[str, Any]] = {}
        hashed: list[WriteResult] = []
        for result in written:
            name = result.storage_data.relative_path
            if name not in digests:
                digests[name] = commit.digest(self.checkpoint / name)
            hashed.append(HashedWrite(result.index, result.size_in_bytes, result.storage_data, digests[name]))
        if self.elsewhere:
            durable.sync_folder(self.checkpoint)
        future: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        future.set_result(hashed)
        return future

    def _commit(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.storage_data = {result.index: result.storage_data for of_rank in results for result in of_rank}
        write_metadata(self.checkpoint, metadata)  # DCP's own would be a pickle, which not every Python writes alike
        files = {
            result.storage_data.relative_path: result.digest
            for of_rank in results
            for result in of_rank
            if isinstance(result, HashedWrite)
        }
        synced = set(files)  # by DCP, on the rank that wrote them
        for path in self.checkpoint.rglob("*"):
            name = path.relative_to(self.checkpoint).as_posix()
            if path.is_file() and name not in files:
                files[name] = commit.digest(path)
        commit.commit(self.checkpoint, files, synced=synced, **self.facts)
