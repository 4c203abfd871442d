import shlex

import pytest

from allranks.cluster.identity import Identity
from allranks.cluster.torchrun_agent import refuse_nodes_left_out, same_on_all_nodes, told_to_torchrun
from allranks.errors import UsageError

STARTED = {"TORCHELASTIC_RUN_ID": "none"}
PROGRAM = "-m allranks.train c.yaml --master-addr not-torchruns"


def told(words: str, **env: str) -> dict[str, str]:
    return told_to_torchrun({**STARTED, **env}, shlex.split(words))


@pytest.mark.parametrize("torchrun", ["/venv/bin/python /venv/bin/torchrun", "python -m torch.distributed.run"])
def test_options_are_read_up_to_the_program_in_each_spelling(torchrun: str) -> None:
    words = f"{torchrun} --nnodes=2 --node_rank 1 --standalone --rdzv-id allranks --master_addr gpu0 {PROGRAM}"
    assert told(words) == {
        "nnodes": "2",
        "node-rank": "1",
        "standalone": "",
        "rdzv-id": "allranks",
        "master-addr": "gpu0",
        "m": "",
    }


def test_variables_count_where_no_option_is_given() -> None:
    words = f"torchrun --nnodes 2 {PROGRAM}"
    assert told(words, PET_NNODES="3", PET_MASTER_ADDR="gpu0") == {"nnodes": "2", "master-addr": "gpu0", "m": ""}


def test_other_parents_tell_nothing() -> None:
    assert told("bash run.sh") == {} and told("torchrun --nnodes 2 x.py", ALLRANKS_RUN_ID="7") == {}
    assert told_to_torchrun({}, ["torchrun", "--nnodes", "2", "x.py"]) == {}
    assert told_to_torchrun(STARTED) == {}, "pytest is no torchrun"


def of_one_node(world_size: int = 8) -> Identity:
    return Identity(0, world_size, 0, 8, 0, "gpu0", 29500, "torchrun")


@pytest.mark.parametrize("where", ["--master-addr gpu0", "--rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29400"])
def test_where_nodes_meet_without_how_many_is_refused(where: str) -> None:
    with pytest.raises(UsageError, match="and no --nnodes, which is then 1: each node would train alone"):
        refuse_nodes_left_out(of_one_node(), told(f"torchrun {where} {PROGRAM}"))
    refuse_nodes_left_out(of_one_node(), told(f"torchrun --nnodes 1 {where} {PROGRAM}"))
    refuse_nodes_left_out(of_one_node(16), told(f"torchrun {where} {PROGRAM}"))


@pytest.mark.parametrize("words", ["torchrun", "torchrun --standalone", "torchrun --master-addr 127.0.0.1"])
def test_one_node_that_names_no_other_is_let_be(words: str) -> None:
    refuse_nodes_left_out(of_one_node(), told(f"{words} --nproc-per-node 8 {PROGRAM}"))


@pytest.mark.parametrize(
    ("nnodes", "local", "num_gpus", "equal"),
    [
        ("2:2", "1", 0, True),
        ("3", "1", 0, False),
        ("2", "2", 0, False),
        ("2", "8", 8, False),
    ],
)
def test_what_other_nodes_were_told_is_compared(nnodes: str, local: str, num_gpus: int, equal: bool) -> None:
    here = same_on_all_nodes(told(f"torchrun --nnodes 2 {PROGRAM}"), {"LOCAL_WORLD_SIZE": "1"}, 0)
    there = same_on_all_nodes(told(f"torchrun --nnodes {nnodes} {PROGRAM}"), {"LOCAL_WORLD_SIZE": local}, num_gpus)
    assert (here == there) == equal
    assert same_on_all_nodes({}, {"LOCAL_WORLD_SIZE": "1"}, 0) == {}


def test_nodes_with_other_numbers_of_gpus_may_use_all_of_theirs() -> None:
    words = told(f"torchrun --nnodes 2 {PROGRAM}")
    four, eight = (same_on_all_nodes(words, {"LOCAL_WORLD_SIZE": str(number)}, number) for number in (4, 8))
    assert four == eight
