"""What `train` would refuse on this node alone: all of it at once and as text, for every node to read."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

from allranks.cluster.network import network_environment
from allranks.config import RunConfig
from allranks.config.stored_quantization import as_stored
from allranks.disk import told_to_user
from allranks.errors import AllranksError, RefusedError
from allranks.launch.node.this_node import refuse_unwritable_run
from allranks.launch.spec.options import Launch
from allranks.model.files import config_json, stored_config
from allranks.model.known_names import refuse_unknown_overrides, refuse_wrong_layer_class
from allranks.model.needs_gpu import refuse_without_gpu
from allranks.observe import RunDir
from allranks.observe.trackers import refuse_missing_packages
from allranks.plan.adapter_names import refuse_unknown_adapter


class Refusals:
    """`texts` is what has been refused so far."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def keep(self, check: Callable[[], object]) -> None:
        """Do it, and keep what it refuses."""
        try:
            check()
        except (AllranksError, OSError) as error:
            refusal = told_to_user(error, "this node cannot be checked")
            if refusal is None:
                raise
            self.texts.append(str(refusal))


def refused_here(cfg: RunConfig, launch: Launch, refusals: Refusals) -> dict[str, str]:
    """Keep what would be refused; returns the variables that the ranks of this node would get for the network."""
    refusals.keep(lambda: refuse_without_gpu(cfg, launch.num_gpus))
    refusals.keep(lambda: refuse_wrong_layer_class(cfg))
    refusals.keep(lambda: refuse_unknown_overrides(cfg, config_json(cfg)))
    refusals.keep(lambda: refuse_unknown_adapter(cfg, stored_config(cfg)))
    refusals.keep(lambda: refuse_stored_weights(cfg))
    refusals.keep(lambda: refuse_without_deepspeed(cfg))
    if launch.node_rank == 0 or launch.max_nodes == 1:  # where rank 0 will be
        refusals.keep(lambda: refuse_missing_packages(cfg))
    variables: dict[str, str] = {}
    peer = launch.address if launch.max_nodes > 1 else None

    def network() -> None:
        uses_gpus = launch.num_gpus > 0
        variables.update(network_environment(cfg.network.settings, os.environ, uses_gpus=uses_gpus, peer=peer).added)

    refusals.keep(network)
    # The last: on a mount that does not answer it never ends.
    refusals.keep(lambda: refuse_unwritable_run(RunDir(cfg.checkpoint.output_dir)))
    return variables


def refuse_stored_weights(cfg: RunConfig) -> None:
    """Raises ConfigError for a base model that is here, and whose weights lie quantized so that they cannot be trained
    over: a rank says so only once it loads them."""
    as_stored(cfg, stored_config(cfg))


def refuse_without_deepspeed(cfg: RunConfig) -> None:
    """Raises RefusedError where the config needs it and it is not installed."""
    if cfg.deepspeed.stage and importlib.util.find_spec("deepspeed") is None:
        raise RefusedError("deepspeed: the library is not installed here: pip install 'allranks[deepspeed]'")
