"""Logs of NCCL 2.18 to 2.32, made: no recording. The wording of each version is that of the format strings in NCCL's
sources at its tag (2.31 and 2.32, whose sources are not public, as 2.30.7); hosts, cards and numbers are invented."""

from __future__ import annotations

from dataclasses import dataclass

VERSIONS = (
    *("2.18.6", "2.19.4", "2.20.5", "2.21.5", "2.22.3", "2.23.4", "2.24.3", "2.25.1"),
    *("2.26.2", "2.27.7", "2.28.9", "2.29.7", "2.30.7", "2.31.0", "2.32.0"),
)
COMM_ID = "0x7dd1d7c8e9ff55aa"


@dataclass(frozen=True)
class Cluster:
    """Ranks in a ring: between nodes over `network` (IB, RoCE), but for `on_sockets`; inside of one by P2P or SHM."""

    version: str = "2.27.7"
    num_nodes: int = 2
    ranks_per_node: int = 2
    network: str = "IB"
    gdr: bool = True
    on_sockets: tuple[int, ...] = ()
    """Ranks that found no device and fell back."""
    inside: str = "P2P"
    comm_ids: tuple[str, ...] | None = None
    """The communicator of each rank, where they are not one."""

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.ranks_per_node

    def host(self, rank: int) -> str:
        return f"node{rank // self.ranks_per_node}"

    def pid(self, rank: int) -> int:
        return 4000 + rank


def rank_log(cluster: Cluster, rank: int) -> str:
    """What the NCCL of `rank` writes when its communicator is made and first used."""
    return "\n".join(rank_lines(cluster, rank)) + "\n"


def rank_lines(cluster: Cluster, rank: int) -> list[str]:
    numbers = tuple(int(part) for part in cluster.version.split(".")[:2])
    local, world = rank % cluster.ranks_per_node, cluster.world_size
    fell_back = rank in cluster.on_sockets
    head = f"{cluster.host(rank)}:{cluster.pid(rank)}:{cluster.pid(rank)} [{local}] NCCL INFO "
    node = rank // cluster.ranks_per_node
    said = ["Bootstrap" + (" : " if numbers < (2, 26) else ": ") + f"Using eth0:10.0.0.{node}<0>"]
    if fell_back:
        said += ["NET/IB : No device found.", f"NET/Socket : Using [0]eno1:192.168.1.{node}<0>"]
    else:
        ports = [f" [{number}]mlx5_{number}:1/{cluster.network}" for number in range(2)]
        said += [f"NET/IB : Using{''.join(ports)} [RO]; OOB eth0:10.0.0.{node}<0>"]
        if not cluster.gdr:
            said += ["NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0'"]
    network = "Socket" if fell_back else "IB"
    if numbers >= (2, 28):
        said += [f"Initialized NET plugin {network}", f"Assigned NET plugin {network} to comm"]
    comm_id = cluster.comm_ids[rank] if cluster.comm_ids else COMM_ID
    of_comm = (
        f"comm 0x55aa{rank:04x}9550 rank {rank} nranks {world} cudaDev {local} nvmlDev {local} "
        f"busId {local + 1:x}b000 commId {comm_id}"
    )
    function = "ncclCommInitRankConfig " if numbers >= (2, 21) else ""
    started = f"[Rank {rank}] {function}" if numbers >= (2, 29) else function
    said += [f"Using network {network}", f"{started}{of_comm} - Init START"]
    completed = [f"{function}{of_comm} - Init COMPLETE"]
    channels = [line for channel in range(2) for line in _channels(cluster, numbers, rank, channel)]
    # From 2.22 on ranks connect when they first talk.
    said += completed + channels if numbers >= (2, 22) else channels + completed
    lines = [head + text for text in said]
    if rank % cluster.ranks_per_node == 0:
        lines.insert(1, f"NCCL version {cluster.version}+cuda12.4")
    return lines


def _channels(cluster: Cluster, numbers: tuple[int, ...], rank: int, channel: int) -> list[str]:
    world, lines = cluster.world_size, []
    for direction, peer in (("receive", (rank - 1) % world), ("send", (rank + 1) % world)):
        source, target = (rank, peer) if direction == "send" else (peer, rank)
        pair = " -> ".join(f"{one}[{one % cluster.ranks_per_node}]" for one in (source, target))
        if cluster.host(rank) != cluster.host(peer):
            on_sockets = rank in cluster.on_sockets
            gdr = "/GDRDMA" + ("(PCI)" if numbers >= (2, 26) and channel else "")
            over = "Socket/0" if on_sockets else f"IB/{channel}" + (gdr if cluster.gdr else "")
            lines += [f"Channel {channel:02d}/0 : {pair} [{direction}] via NET/{over}"]
        elif direction == "send" and cluster.inside == "P2P":
            lines += [f"Channel {channel:02d}/0 : {pair} via P2P/{'IPC' if numbers < (2, 20) else 'CUMEM'}"]
        elif direction == "send":
            way = "direct" if numbers >= (2, 30) else "direct/direct"
            lines += [f"Channel {channel:02d} : {pair} via SHM/{way}"]
    return lines
