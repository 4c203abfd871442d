"""The proof that ranks make of themselves: real ranks over gloo, a right run, and each kind of wrong one."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from allranks.cluster.identity import Identity
from allranks.config.load import resolve_mapping
from allranks.data import BatchPlan, BlockOrder, BlockSet
from allranks.errors import AllranksError
from allranks.observe import EventLog, RunDir, read_events
from allranks.observe.events import ProofEvent
from allranks.train import feed as feeding
from allranks.train.proof import Proving
from allranks.verify.run import verify_run
from tests.ranks import run_ranks

RANKS = 2
FLAT = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d", "type": "alpaca"}]}


def _blocks() -> BlockSet:
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 30, 23)
    documents = [(generator.integers(1, 99, n), np.ones(n, dtype=np.int64)) for n in lengths]
    return BlockSet.from_documents(documents, sequence_len=40, packing=False)


def _plan(rank: int, world_size: int) -> BatchPlan:
    blocks = _blocks()
    order = BlockOrder(len(blocks), 5)
    return BatchPlan(blocks, order, global_batch=7, micro_batch_size=2, rank=rank, world_size=world_size)


def _start(case: str, rank: int, folder: Path, world_size: int = RANKS) -> str:
    """A first step, and a checkpoint after it; what was raised."""
    network = {"network": {"require": case.partition(" ")[2]}} if case.startswith("require") else {}
    cfg = resolve_mapping({**FLAT, **network})
    me = Identity(rank, world_size, rank, None, rank, "127.0.0.1", 0, "test")
    run = RunDir(folder / case)
    events = EventLog(run.events(rank), rank, run_id="this start")
    torch.manual_seed(0)
    hf_model = nn.Linear(3, 3)
    placement = SimpleNamespace(device=torch.device("cpu"), nodes=tuple(range(world_size)))
    model = SimpleNamespace(hf_model=hf_model, placement=placement, router=None)
    told: list[str] = []
    proving = Proving(cfg, me, run, model, events, step=1, say=told.append, warn=told.append)
    plan = _plan(rank, world_size)
    own = plan
    if case == "data of another rank" and rank == 1:
        plan = _plan(0, world_size)
    if case == "another copy of the data" and rank == 1:
        collate = feeding.collate

        def other(*arguments, **options):
            found = collate(*arguments, **options)
            return found.__class__(**{**found.__dict__, "input_ids": found.input_ids + 1})

        feeding.collate = other
    if case == "another model" and rank == 1:
        hf_model.weight.data[1, 2] += 1e-6
    try:
        proving.before_first_step()
        steps = feeding.feed(
            plan, start=0, pad_blocks_to=None, pad_token_id=0, device=torch.device("cpu"), taken=proving.taken
        )
        step = next(steps)
        loss_sum = sum(float(len(batch.labels)) for batch in step.batches) * 0.5
        steps.close()
        loss = 0.7 if case == "a loss of its own" else 0.5
        proving.after_first_step(own, step.plan, torch.tensor([loss_sum, 0.0]), loss, pad_to=None, pad_id=0)
        if case == "later another model" and rank == 1:
            hf_model.bias.data[0] += 1
        proving.before_save(4)
    except AllranksError as error:
        return f"{type(error).__name__}: {error}"
    return "\n".join(told)


CASES = {
    "right": "",
    "require lo": "",
    "require eth7": "RefusedError: before the first step: eth7 is required, and rank",
    "require gdr": "which knows only sockets",
    "data of another rank": "RefusedError: after step 1: block ",
    "another copy of the data": "did not train on the data that is its own in step 1",
    "another model": "replicas differ: weight is one on rank 0 and another on rank 1",
    "later another model": "AllranksError: step 4: ranks that hold the same parameters hold different ones: bias",
    "a loss of its own": "the recorded loss 0.70000 is not the mean 0.50000",
}


def _rank(rank: int, folder: Path) -> None:
    said = {}
    collate = feeding.collate
    for case in CASES:
        said[case] = _start(case, rank, folder)
        feeding.collate = collate
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("proof")
    run_ranks(_rank, folder, num_ranks=RANKS)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_ends_the_run_on_all_ranks_and_verify_tells_it_again(folder, case):
    of_ranks = [json.loads((folder / f"{rank}.json").read_text())[case] for rank in range(RANKS)]
    ends = "Error: " in of_ranks[0]
    assert CASES[case] in of_ranks[0]
    assert ends == ("Error: " in of_ranks[1]), "one rank would wait for the other"
    proof, checks = verify_run(folder / case)
    wrong = [check for check in checks if check.result == "wrong"]
    if not CASES[case]:
        assert of_ranks[0].startswith("verified: 2 ranks on 2 nodes; all 2 ranks talk over sockets on lo")
        assert [check.name for check in checks if check.result == "ok"] == [check.name for check in checks]
        assert "before the checkpoints of step 4" in checks[-1].said
        assert [rank.blocks.number for rank in proof.ranks] == [4, 3]
    elif case == "a loss of its own":
        assert not ends, "it is told, and the run goes on"
        assert [check.name for check in wrong] == ["loss"]
    else:
        name = {"req": "network.require", "dat": "data", "ano": "data", "lat": "checkpoints"}[case[:3]]
        assert {check.name for check in wrong} >= {"parameters" if case == "another model" else name}


def test_each_rank_says_it_in_its_events_too(folder):
    for rank in range(RANKS):
        first, later = [e for e in read_events(RunDir(folder / "right").events(rank)) if isinstance(e, ProofEvent)]
        assert (first.step, later.step, first.num_blocks) == (1, 4, 4 - rank)
        assert first.parameters == later.parameters and first.host and not later.different


def test_one_rank_alone_proves_itself(tmp_path):
    assert _start("right", 0, tmp_path, world_size=1).startswith("verified: 1 rank on 1 node")
    assert all(check.result == "ok" for check in verify_run(tmp_path / "right")[1])


def test_a_proof_that_cannot_be_kept_is_a_warning(tmp_path):
    (tmp_path / "right" / "proof.json").mkdir(parents=True)
    assert "the run's proof cannot be kept" in _start("right", 0, tmp_path, world_size=1)
