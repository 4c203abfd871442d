"""The launchers' own options, as they may follow a lone `--`: what allranks passes on, takes as its own, or refuses.

A test compares them with the installed launchers: a new option must be sorted by decision, not by accident be taken for
a config key."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_LOGS = "every rank's log is in OUTPUT_DIR/logs"
_SHOWN = f"rank 0 is shown, {_LOGS}"
_MODULE = "allranks runs its own module"


@dataclass(frozen=True)
class LauncherOptions:
    """Names are spelt with `-`; `word` is how the launcher itself spells them.

    `passed` and `settings` say whether an option takes a value. `same` are other names of options of allranks.
    `settings` are compared with the config. `flags` are settings that need no value: (setting, value). `refused` may
    end with `*`.
    """

    passed: Mapping[str, bool]
    refused: Mapping[str, str]
    same: Mapping[str, str] = field(default_factory=dict)
    settings: frozenset[str] = frozenset()
    flags: Mapping[str, tuple[str, str] | None] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)
    word: str = "-"

    def why_refused(self, option: str) -> str | None:
        """The reason, where an option is refused."""
        if option in self.refused:
            return self.refused[option]
        return next(
            (why for name, why in self.refused.items() if name[-1] == "*" and option.startswith(name[:-1])), None
        )


TORCHRUN = LauncherOptions(
    passed={
        "--rdzv-conf": True,
        "--monitor-interval": True,
        "--start-method": True,
        "--event-log-handler": True,
        "--role": True,
        "--local-addr": True,
        "--numa-binding": True,
        "--signals-to-handle": True,
        "--shutdown-timeout": True,
    },
    refused={
        "--standalone": "a single node needs no option: leave it out",
        "--module": "allranks names its own module",
        "--no-python": _MODULE,
        "--run-path": _MODULE,
        "--log-dir": _LOGS,
        "--logs-specs": _LOGS,
        "--redirects": _LOGS,
        "--tee": _SHOWN,
        "--local-ranks-filter": _SHOWN,
        "--duplicate-stdout-filters": _LOGS,
        "--duplicate-stderr-filters": _LOGS,
        "--virtual-local-rank": "ranks choose their device by LOCAL_RANK",
    },
    short={"-m": "--module", "-r": "--redirects", "-t": "--tee"},
)

_NOT_SUPPORTED = "allranks' engine has nothing like it"
_COMPILE = "use the config's torch_compile, torch_compile_backend and torch_compile_mode"
_ENGINE = "allranks' engine does not use Accelerate's; settings of DeepSpeed belong into the config"

ACCELERATE = LauncherOptions(
    passed={
        "--monitor-interval": True,
        "--rdzv-conf": True,
        "--role": True,
        "--num-cpu-threads-per-process": True,
        "--quiet": False,
    },
    same={
        "--config-file": "--accelerate-config",
        "--num-machines": "--nnodes",
        "--machine-rank": "--node-rank",
        "--main-process-ip": "--master-addr",
        "--main-process-port": "--master-port",
    },
    settings=frozenset(
        {
            "--mixed-precision",
            "--num-processes",
            "--gpu-ids",
            "--gradient-clipping",
            "--dynamo-backend",
            "--main-training-function",
            *(
                "--fsdp-" + name
                for name in (
                    *("offload-params", "min-num-params", "sharding-strategy", "reshard-after-forward"),
                    *("auto-wrap-policy", "transformer-layer-cls-to-wrap", "backward-prefetch", "state-dict-type"),
                    *("forward-prefetch", "use-orig-params", "cpu-ram-efficient-loading", "sync-module-states"),
                    *("activation-checkpointing", "activation-checkpointing-offload"),
                )
            ),
            *(
                "--parallelism-config-" + name
                for name in ("dp-replicate-size", "dp-shard-size", "tp-size", "cp-size", "sp-size")
            ),
        }
    ),
    flags={
        "--multi-gpu": ("distributed_type", "MULTI_GPU"),
        "--use-fsdp": ("distributed_type", "FSDP"),
        "--use-deepspeed": ("distributed_type", "DEEPSPEED"),
        "--use-megatron-lm": ("distributed_type", "MEGATRON_LM"),
        "--tpu": ("distributed_type", "XLA"),
        "--cpu": ("use_cpu", "true"),
        "--debug": ("debug", "true"),
        "--enable-cpu-affinity": ("enable_cpu_affinity", "true"),
        "--same-network": None,  # as it is
        "--use-parallelism-config": None,  # its settings are what counts
    },
    refused={
        "--module": "allranks names its own module",
        "--no-python": _MODULE,
        "--tee": _SHOWN,
        "--log-dir": _LOGS,
        "--parallelism-config-*": _NOT_SUPPORTED,
        "--megatron-lm-*": _NOT_SUPPORTED,
        "--fp8-*": _NOT_SUPPORTED,
        "--dynamo-*": _COMPILE,
        "--tpu-*": _NOT_SUPPORTED,
        "--no-tpu-cluster": _NOT_SUPPORTED,
        "--vm": _NOT_SUPPORTED,
        "--env": _NOT_SUPPORTED,
        "--downcast-bf16": _NOT_SUPPORTED,
        "--aws-*": _NOT_SUPPORTED,
        "--mpirun-hostfile": "start mpirun yourself, with `python -m allranks.train CONFIG`",
        "--zero-stage": _ENGINE,
        "--zero3-*": _ENGINE,
        "--offload-*": _ENGINE,
        "--deepspeed-*": _ENGINE,
    },
    short={"-m": "--module", "-q": "--quiet"},
)

_ALWAYS = None
_BY_ALLRANKS = "allranks starts the nodes: see --nnodes and --hosts"

DEEPSPEED = LauncherOptions(
    passed={"--bind-cores-to-rank": False, "--bind-core-list": True, "--log-level": True, "--quiet": False},
    same={"--num-nodes": "--nnodes", "--num-gpus": "--nproc-per-node", "--num-accelerators": "--nproc-per-node"},
    flags={"--no-ssh": _ALWAYS, "--no-local-rank": _ALWAYS},
    refused={
        "--module": "allranks names its own module",
        "--no-python": _MODULE,
        "--hostfile": "allranks writes the launcher's; its own --hostfile comes before the `--`",
        "--include": "choose nodes with --hosts, and GPUs with CUDA_VISIBLE_DEVICES",
        "--exclude": "choose nodes with --hosts, and GPUs with CUDA_VISIBLE_DEVICES",
        "--enable-each-rank-log": _LOGS,
        "--save-pid": _LOGS,
        "--launcher-args": _BY_ALLRANKS,
        "--force-multi": _BY_ALLRANKS,
        "--no-ssh-check": _BY_ALLRANKS,
        "--ssh-port": _BY_ALLRANKS,
        "--venv-script": _BY_ALLRANKS,
        "--autotuning": "it starts runs of its own",
    },
    short={"-i": "--include", "-e": "--exclude", "-q": "--quiet"},
    word="_",
)

OPTIONS = {"torchrun": TORCHRUN, "accelerate": ACCELERATE, "deepspeed": DEEPSPEED}
