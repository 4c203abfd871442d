"""Runs trainings of test_matrix: `python -m tests.cluster.matrix JOBS`, JOBS a JSON file with a list of `Job`s.

Libraries are imported once; every rank of every job is a fork of this process, so that no job sees what another one
left behind, and none pays for imports.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SEQUENCE = (3, 9, 27, 81, 4, 12, 36, 108, 5, 15)
"""Tokens that trained and exported models are compared on."""


@dataclass
class Job:
    """One run on `world_size` ranks, with these config keys. Once trained, its logits go to `logits`, if given.

    `export`: instead of training, export this run to `keys["out"]`. `evaluate`: instead of training, evaluate this
    run, and write the loss of each data set to `keys["out"]`.
    """

    name: str
    world_size: int
    keys: dict[str, Any]
    logits: str | None = None
    export: str | None = None
    evaluate: str | None = None
    ports: list[int] = field(default_factory=list)


def write_jobs(path: Path, jobs: list[Job]) -> None:
    path.write_text(json.dumps([asdict(job) for job in jobs]))


def main(path: Path, seconds_each: float = 60.0) -> None:
    """Run the jobs in order; those of one rank two at a time. Writes NAME.code beside `path`, and NAME-RANK.log."""
    jobs = [Job(**entry) for entry in json.loads(path.read_text())]
    import deepspeed  # noqa: F401

    import tests.imported_by_ranks  # noqa: F401

    waiting = list(jobs)
    while waiting:
        together = [waiting.pop(0)]
        if together[0].world_size == 1 and waiting and waiting[0].world_size == 1:
            together.append(waiting.pop(0))
        started = {job.name: [_fork(job, rank, path.parent) for rank in range(job.world_size)] for job in together}
        deadline = time.monotonic() + seconds_each
        for name, children in started.items():
            codes = [_wait(child, deadline) for child in children]
            (path.parent / f"{name}.code").write_text(" ".join(map(str, codes)))


def _wait(child: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


def _fork(job: Job, rank: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    log = os.open(folder / f"{job.name}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _run(job, rank)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def _run(job: Job, rank: int) -> NoReturn:
    from allranks.cluster.identity import identify
    from allranks.config.load import resolve_mapping
    from allranks.train import main as train_main
    from allranks.train.world import exit_rank

    if job.export is not None:
        from allranks.export.export import export

        export(Path(job.export), **{**job.keys, "out": Path(job.keys["out"])})
        os._exit(0)
    if job.world_size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job.world_size), "LOCAL_RANK": str(rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(job.world_size), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(job.ports[0])}
    identity = identify(os.environ)
    if job.evaluate is not None:
        from allranks.inference.evaluate import evaluate

        found = evaluate(job.evaluate, report=print)
        if rank == 0:
            scores = [*found.data, *([found.total] if found.total else [])]
            Path(job.keys["out"]).write_text(json.dumps([[one.name, one.score.loss] for one in scores]))
        exit_rank(0, identity)
    if job.logits is not None:
        train_main.train = _keep_logits(train_main.train, Path(job.logits), rank)
    exit_rank(train_main.main_rank(resolve_mapping(job.keys), identity), identity)


def _keep_logits(train: Any, path: Path, rank: int) -> Any:
    """`train`, which then runs the trained model, wrapped and sharded as it is, on SEQUENCE."""
    import torch

    from allranks.model.batch import TorchBatch

    def trained(loop: Any) -> Any:
        outcome = train(loop)
        ids = torch.tensor([SEQUENCE])
        none = torch.zeros(0, dtype=torch.long)
        loop.model.module.eval()
        logits = loop.model.logits(
            TorchBatch(ids, torch.arange(ids.shape[1])[None], (ids.shape[1],), none, none, 0, ())
        )
        if rank == 0:
            torch.save({"logits": logits, "kind": loop.model.placement.kind}, path)
        return outcome

    return trained


if __name__ == "__main__":
    main(Path(sys.argv[1]))
