"""What a proof proves: a right run passes, and each kind of wrong one is refused with the reason and the rank."""

from dataclasses import replace

import pytest

from allranks.observe.nccl_log import parse
from allranks.verify import Blocks, Connection, Proof, RankProof, findings, judge, sentence
from tests.nccl_logs import VERSIONS, Cluster, rank_log


def a_run(cluster=None, *, num_nodes=2, per_node=2, require=None, blocks_of_rank=3, wrong_logs=None):
    """Of ranks on GPUs with the NCCL logs of `cluster`, or else on gloo over eth0."""
    num_nodes, per_node = (cluster.num_nodes, cluster.ranks_per_node) if cluster else (num_nodes, per_node)
    world = num_nodes * per_node
    ranks = []
    for rank in range(world):
        node = rank // per_node
        others = [other for other in range(num_nodes) if other != node]
        ranks.append(
            RankProof(
                rank=rank,
                world_size=world,
                host=f"node{node}",
                node=node,
                local_rank=rank % per_node,
                pid=4000 + rank,
                step=1,
                gpu=f"GPU-{rank:08d}" if cluster else None,
                device="NVIDIA H100" if cluster else "Xeon",
                addresses=(f"10.0.0.{node}", f"192.168.1.{node}"),
                connections=tuple(Connection("eth0", f"10.0.0.{node}", f"10.0.0.{other}") for other in others),
                whole="w",
                parts="p",
                sums="s",
                blocks=Blocks(
                    blocks_of_rank,
                    tuple(range(rank * blocks_of_rank, (rank + 1) * blocks_of_rank)),
                    content=f"c{rank}",
                    content_of_next=f"c{(rank + 1) % world}",
                    target_tokens=10 + rank,
                    loss_sum=2.0 * (10 + rank),
                ),
                nccl=parse(rank_log(wrong_logs or cluster, rank))[0] if cluster else None,
            )
        )
    total = world * blocks_of_rank
    return Proof(
        run="r",
        t=0.0,
        step=1,
        world_size=world,
        backend="nccl" if cluster else "gloo",
        ranks=tuple(ranks),
        ids=tuple(range(total)),
        num_blocks=total,
        num_target_tokens=sum(10 + rank for rank in range(world)),
        loss=2.0,
        require=require,
    )


def change(proof, rank, **fields):
    return replace(proof, ranks=tuple(replace(one, **fields) if one.rank == rank else one for one in proof.ranks))


def wrong(proof):
    return {check.name: check.said for check in judge(proof) if check.result == "wrong"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("network", ["IB", "RoCE"])
def test_a_right_run_of_each_version_passes_and_is_told_in_a_line(version, network):
    proof = a_run(Cluster(version, network=network), require="gdr")
    checks = judge(proof)
    assert {check.name: check.result for check in checks} == dict.fromkeys([check.name for check in checks], "ok")
    name = "InfiniBand" if network == "IB" else "RoCE"
    assert sentence(proof, checks).startswith(f"4 ranks on 2 nodes; all 4 ranks talk over {name} with GPUDirect;")
    assert not findings(checks, proof)


def test_a_right_run_on_gloo_and_one_rank_alone_pass():
    assert all(check.result == "ok" for check in judge(a_run(require="eth0")))
    assert all(check.result == "ok" for check in judge(a_run(num_nodes=1, per_node=1)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rank_that_fell_back_to_sockets_is_named_with_node_interface_and_reason(version):
    cluster = Cluster(version, num_nodes=8, ranks_per_node=2, on_sockets=(9, 13))
    proof = a_run(cluster)
    said = wrong(proof)
    assert list(said) == ["transports"]
    assert said["transports"] == (
        "14 of 16 ranks talk over InfiniBand with GPUDirect; ranks 9 and 13 (node 4, node4; node 6, node6) fell back "
        'to sockets on eno1, because its NCCL says "NET/IB : No device found."'
    )
    for require in ("ib", "gdr"):
        told = wrong(replace(proof, require=require))["network.require"]
        assert told.startswith(f"{require} is required, and ranks 9 and 13") and "sockets on eno1, because" in told
    (finding,) = findings(judge(a_run(Cluster(version, on_sockets=(1,)))), proof)
    assert finding.code == "verify-transports" and (finding.who.rank, finding.who.host) == (1, "node0")


@pytest.mark.parametrize(
    ("cluster", "require", "reason"),
    [
        (Cluster(gdr=False), "gdr", "nvidia-peermem"),
        (Cluster(network="RoCE"), "ib", "over RoCE with GPUDirect"),
        (Cluster(), "roce", "over InfiniBand"),
        (Cluster(), "eth0", "InfiniBand with GPUDirect (mlx5_0:1)"),
        (None, "ib", "gloo, which knows only sockets"),
        (None, "eth1", "over sockets on eth0"),
    ],
)
def test_a_network_that_is_not_the_required_one_is_refused(cluster, require, reason):
    assert reason in wrong(a_run(cluster, require=require))["network.require"]


@pytest.mark.parametrize(
    ("cluster", "require"),
    [(Cluster(), "ib"), (Cluster(network="RoCE"), "roce"), (Cluster(), "mlx5_0,mlx5_1"), (None, "eth0,ens5")],
)
def test_the_required_network_passes(cluster, require):
    assert not wrong(a_run(cluster, require=require))


def test_a_requirement_that_cannot_be_looked_at_is_not_met():
    proof = a_run(require="eth0")
    proof = replace(proof, ranks=tuple(replace(rank, connections=None) for rank in proof.ranks))
    assert "not known" in wrong(proof)["network.require"]


def test_ranks_that_share_a_gpu_are_refused():
    proof = change(a_run(Cluster()), 3, gpu="GPU-00000001")
    assert wrong(proof) == {"GPUs": "ranks 1 and 3 (node 0, node0; node 1, node1) share GPU-00000001"}
    assert "on the CPU" in wrong(change(a_run(Cluster()), 3, gpu=None))["GPUs"]


def test_a_replica_with_other_parameters_is_refused():
    assert wrong(change(a_run(), 2, sums="other")) == {
        "parameters": "the parameters of rank 2 (node 1, node1) are not those of ranks 0, 1, 3 (node 0, node0; node 1, "
        "node1)"
    }
    assert (
        "layer is one"
        in wrong(replace(a_run(), different=("layer is one on rank 0 and another on rank 1",)))["parameters"]
    )
    # Shards: ranks 0 and 2 hold the same part (HSDP), 1 and 3 another.
    proof = a_run()
    for rank in range(4):
        proof = change(proof, rank, parts=f"part {rank % 2}", sums=f"sum {rank % 2}")
    assert not wrong(proof)
    assert "rank 3" in wrong(change(proof, 3, sums="other"))["parameters"]
    assert "rank 3" in wrong(change(proof, 3, whole="other"))["parameters"]


def test_replicas_on_processors_of_two_kinds_may_round_differently():
    proof = change(a_run(), 3, sums="other", device="EPYC")
    assert not wrong(proof)
    assert [check.result for check in judge(proof) if check.name == "parameters"] == ["warning"]


def test_a_rank_that_got_another_ranks_data_is_refused():
    proof = a_run()
    of_0 = proof.ranks[0].blocks
    said = wrong(change(proof, 1, blocks=replace(proof.ranks[1].blocks, ids=of_0.ids)))["data"]
    assert said == "block 0 went to ranks 0 and 1 (node 0, node0), 2 times in one step"
    # The same numbers, and yet other tokens: another copy of the data.
    said = wrong(change(proof, 1, blocks=replace(proof.ranks[1].blocks, content="c0")))["data"]
    assert said.startswith("rank 1 (node 0, node0) did not train on the data that is its own in step 1")
    blocks = replace(proof.ranks[2].blocks, ids=(6, 7), number=2)
    assert "1 of the 12 blocks of step 1 went to no rank: 8" in wrong(change(proof, 2, blocks=blocks))["data"]
    blocks = replace(proof.ranks[2].blocks, ids=(6, 7, 99))
    assert "not of step 1: 99" in wrong(change(proof, 2, blocks=blocks))["data"]
    # Too many to keep: then by their number and content.
    many = replace(proof, ids=None)
    assert not wrong(many)
    assert "took 11 blocks" in wrong(change(many, 2, blocks=replace(proof.ranks[2].blocks, number=2)))["data"]


def test_a_block_that_a_step_has_twice_may_go_to_two_ranks():
    """At the end of an epoch, of few blocks."""
    proof = a_run()
    proof = replace(proof, ids=(*proof.ids[:-1], 0))
    proof = change(proof, 3, blocks=replace(proof.ranks[3].blocks, ids=(9, 10, 0)))
    assert not wrong(proof)


def test_a_loss_that_leaves_ranks_out_is_refused():
    proof = a_run()
    assert "is not the mean" in wrong(replace(proof, loss=1.5))["loss"]
    fewer = replace(proof.ranks[1].blocks, target_tokens=0)
    assert "35 target tokens in step 1, which has 46" in wrong(change(proof, 1, blocks=fewer))["loss"]


def test_ranks_of_two_communicators_or_of_a_smaller_one_are_refused():
    cluster = Cluster(comm_ids=("0xa", "0xa", "0xb", "0xb"))
    assert "different communicators" in wrong(a_run(cluster))["communicator"]
    lone = a_run(Cluster())
    alone = parse(rank_log(Cluster(num_nodes=1, ranks_per_node=1), 0))[0]
    assert "was in no communicator of all 4" in wrong(change(lone, 2, nccl=alone))["communicator"]


def test_ranks_that_are_missing_doubled_behind_or_of_another_world_are_refused():
    proof = a_run()
    assert "rank 2 of 4 told nothing" in wrong(replace(proof, ranks=proof.ranks[:2] + proof.ranks[3:]))["world size"]
    assert (
        "several are rank 1"
        in wrong(replace(proof, ranks=(*proof.ranks[:3], replace(proof.ranks[3], rank=1))))["world size"]
    )
    assert "one of 2 ranks" in wrong(change(proof, 3, world_size=2))["world size"]
    assert "did not do step 1" in wrong(change(proof, 3, step=0))["steps"]
    assert "were to start 8" in wrong(replace(proof, nodes={"0": 4, "1": 4}))["world size"]


def test_nodes_may_have_unequal_numbers_of_ranks():
    """Ranks 1 to 3 on node 1: it is said, and nothing is wrong."""
    proof = a_run()
    proof = change(proof, 1, node=1, host="node1", addresses=proof.ranks[2].addresses)
    said = {check.name: check for check in judge(proof)}
    assert said["nodes"].result == "ok"
    assert said["nodes"].said == "unequal numbers of ranks: node0 has rank 0, node1 has ranks 1-3"
