"""torchrun: static and c10d rendezvous."""

import math
import os
import sys
from collections.abc import Mapping

from allranks.launch.node.starters.starting import Place, Starting
from allranks.launch.spec.options import Launch
from allranks.launch.spec.program import Program
from allranks.launch.spec.rdzv_conf import rdzv_conf


def start_command(launch: Launch, program: Program, place: Place) -> Starting:
    """The exact command that starts this node's ranks."""
    more: list[str] = []
    nodes = f"{launch.min_nodes}:{launch.max_nodes}" if launch.min_nodes != launch.max_nodes else f"{launch.max_nodes}"
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes]
    words += ["--nproc-per-node", f"{launch.nproc_per_node}", "--max-restarts", f"{launch.restarts_left}"]
    if launch.backend == "static":
        words += ["--node-rank", f"{launch.node_rank}"]
        words += ["--master-addr", launch.address, "--master-port", f"{launch.port}"]
    else:
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", launch.endpoint, "--rdzv-id", launch.rdzv_id]
    if launch.is_elastic and "join_timeout" not in (conf := rdzv_conf(launch.launcher_args)):
        # The last of several counts: what the user gave goes along.
        conf = {**conf, "join_timeout": f"{math.ceil(launch.join_seconds)}"}
        more = ["--rdzv-conf", ",".join(f"{key}={value}" for key, value in conf.items())]
    if launch.max_nodes == 1 and "--local-addr" not in launch.launcher_args:
        # Else the agent advertises the machine's name, which a laptop or container often cannot resolve.
        words += ["--local-addr", "127.0.0.1"]
    return Starting([*words, *launch.launcher_args, *more, *program.words()], variables=restart_variables(launch))


def restart_variables(launch: Launch, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What restarts need and the user did not set."""
    if not launch.max_restarts or "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in env:
        return {}
    # With the agent's store shared, restarted ranks find the addresses of the dead ones and fail to connect.
    return {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
