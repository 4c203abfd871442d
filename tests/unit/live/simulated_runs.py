"""Tables of runs of any size, as node 0 keeps them: for what shows them."""

from allranks.findings import Finding, Who
from allranks.live import LiveTable, NodeState, RankState
from allranks.live.table import table_of_nodes

T = 1_790_000_000.0


def simulated(num_ranks: int, *, slow: int | None = None, stopped: int | None = None) -> LiveTable:
    """A run on nodes of eight ranks (of one, if there are few), at step 37 or 38 of 1,200."""
    on_node = 8 if num_ranks >= 8 else 1
    nodes, stragglers, overdue = [], [], []
    for node in range(num_ranks // on_node):
        ranks = []
        for rank in range(node * on_node, (node + 1) * on_node):
            who = Who(node, rank, f"gpu{node}")
            if rank == slow:
                stragglers.append(
                    Finding("straggler", f"rank {rank} (node {node}, gpu{node}) is slow by itself", who=who)
                )
            if rank == stopped:
                overdue.append(Finding("hang", f"rank {rank} (node {node}, gpu{node}) is stopped", who=who))
            ranks.append(
                RankState(
                    rank=rank,
                    pid=4000 + rank,
                    phase="train",
                    step=37 + (rank % 5 == 0 and rank > 0),
                    since=T - 1.5 - (200 if rank == stopped else 0),
                    loss=2.3456,
                    tokens_per_second=187_234.5,
                    step_seconds=2.25,
                    median_step_seconds=2.2,
                    num_steps=1200,
                    data_seconds=0.01 + rank / 10_000,
                    compute_seconds=1.4 + (rank == slow),
                    wait_seconds=0.5,
                    memory_bytes=3_200_000_000 + rank * 1_000_000,
                    gpu_use=0.97 - (rank % 4) / 100,
                    gpu_memory_bytes=61_000_000_000,
                    process_state="T" if rank == stopped else "S",
                    output_age_seconds=1.0,
                    mfu=0.413,
                    attempt=2,
                )
            )
        nodes.append(
            NodeState(node=node, host=f"gpu{node}", t=T, ranks=tuple(ranks), bytes_in=1.21e9, bytes_out=1.19e9)
        )
    return table_of_nodes("20261128-221500-ab12", T, nodes, stragglers=stragglers, overdue=overdue)
