"""Keys of the network: how the ranks reach each other."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import Section

Subsystem = Literal[
    "INIT",
    "COLL",
    "P2P",
    "SHM",
    "NET",
    "GRAPH",
    "TUNING",
    "ENV",
    "ALLOC",
    "CALL",
    "PROXY",
    "NVLS",
    "BOOTSTRAP",
    "REG",
    "PROFILE",
    "RAS",
    "ALL",
]


class NetworkSettings(Section):
    """Settings of NCCL and gloo, which become environment variables of every rank. One already set there wins."""

    interface: str | None = Field(None, min_length=1)
    """Network interface, in NCCL's form: prefixes (`eth,en`), exact names (`=eth0`) or all but some (`^docker`)."""
    infiniband: Literal["auto", "on", "off", "required"] = "auto"
    """Let NCCL use InfiniBand or RoCE; `required` refuses to start on a node without an active port."""
    hcas: list[str] | None = Field(None, min_length=1)
    """InfiniBand adapters to use, by exact name, such as `mlx5_0` or `mlx5_0:1` (one port); all if not given."""
    require: str | None = Field(None, min_length=1)
    """What ranks of different nodes must talk over: `ib`, `roce`, `gdr` (GPUDirect RDMA) or names of interfaces or
    adapters (`eth0,ens5`); a run that fell back to something else ends before its first step."""
    gid_index: int | None = Field(None, ge=0)
    """Entry of the GID table used for RoCE (`show_gids` lists them); NCCL chooses if not given."""
    buffer_size: int | None = Field(None, ge=1024)
    """Bytes of NCCL's buffer between two GPUs, or text such as `4MiB`; NCCL's default is 4 MiB."""
    debug: Literal["VERSION", "WARN", "INFO", "TRACE"] | None = None
    """What NCCL logs; from `INFO` on, each rank has its own file in `OUTPUT_DIR/logs/node-R/nccl/`. On GPUs it
    is `INFO`, with the subsystems INIT, BOOTSTRAP, ENV and NET, if nothing else is said."""
    debug_subsystems: list[Subsystem] | None = Field(None, min_length=1)
    """Parts of NCCL that `debug: INFO` logs; INIT, BOOTSTRAP and ENV if not given."""
    timeout: int | None = Field(None, ge=1)
    """Another name of `ddp_timeout`, which says after how many seconds a hanging collective stops the run."""
    cuda_device_max_connections: int | None = Field(None, ge=1, le=32)
    """Hardware queues from host to GPU (CUDA_DEVICE_MAX_CONNECTIONS); CUDA's default is 8."""


class NetworkConfig(Section):
    """The network between the ranks."""

    network: NetworkSettings | None = None
    """Settings of NCCL and gloo."""

    @property
    def settings(self) -> NetworkSettings:
        """`network`, or its defaults where the config has none."""
        return self.network or NetworkSettings.model_validate({})
