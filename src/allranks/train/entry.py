"""The way into a rank that a launcher of the user's started: what both of its programs share."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from typing import NoReturn

from allranks.cluster.alone import refuse_one_node_of_several, warning_over_ssh
from allranks.cluster.identity import Identity, identify, refuse_part_of_a_job
from allranks.cluster.torchrun_agent import refuse_nodes_left_out, told_to_torchrun
from allranks.config import RunConfig
from allranks.errors import AllranksError, UsageError
from allranks.exit_codes import PREEMPTED
from allranks.observe import libraries_aside, say
from allranks.parent import die_with_parent
from allranks.train.hold import run_held
from allranks.train.under_accelerate import (
    check_accelerate,
    forget_accelerate,
    layers_named_only_there,
    refuse_one_process_of_several,
)

Read = Callable[[Mapping[str, str]], RunConfig]
"""Gives the config with these keys replaced."""


def run_rank(read: Read) -> NoReturn:
    """Read the config, train this process's part and end the process.

    What `read` raises as AllranksError becomes a message.
    """
    until_the_end = ExitStack()
    try:
        cfg, identity = begin_rank(read)
        until_the_end.enter_context(run_held(cfg.checkpoint.output_dir, identity))
    except AllranksError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if "ALLRANKS_RUN_ID" in os.environ:
        die_with_parent()  # `allranks train` started the agent that started this rank: none of them goes on alone
    # Other ranks' output is no terminal's, and without a folder for logs there is nowhere else to put it.
    is_shown = identity.rank == 0 and "ALLRANKS_LOG_DIR" in os.environ
    with libraries_aside() if is_shown else nullcontext():
        # Only now: usage and config errors should not wait for torch.
        from allranks.train.garbage import keep_imports
        from allranks.train.main import main_rank
        from allranks.train.world import exit_rank

        keep_imports()
        code = main_rank(cfg, identity)
    if code == PREEMPTED and "ALLRANKS_RUN_ID" in os.environ:
        # The launcher reads 75 from the `exit` event; the agent would take it for a failure and restart the rank.
        code = 0
    exit_rank(code, identity)


def begin_rank(read: Read) -> tuple[RunConfig, Identity]:
    """The config of this rank and which one it is, after telling the user what is to be said of them. Raises
    AllranksError where it should not train."""
    identity = identify(os.environ)
    refuse_part_of_a_job(os.environ)
    refuse_one_process_of_several()
    refuse_one_node_of_several(identity)
    refuse_nodes_left_out(identity, told_to_torchrun())
    cfg = read({})
    check_accelerate(cfg)
    if layers := layers_named_only_there(cfg):
        cfg = read(layers)
    forget_accelerate()
    if cfg.live.on_hang == "restart" and "ALLRANKS_RUN_ID" not in os.environ:
        raise UsageError(
            "on_hang: restart needs ranks that allranks starts, and those of this run were started by "
            f"{identity.source}: let that start them again after a failure, and set on_hang: end"
        )
    if identity.rank == 0:
        is_alone = identity.local_world_size == identity.world_size and "ALLRANKS_RUN_ID" not in os.environ
        over_ssh = warning_over_ssh() if is_alone and os.environ.get("NNODES") != "1" else None
        for line in (*cfg.remarks, *([f"warning: {over_ssh}"] if over_ssh else [])):
            say(line, file=sys.stderr)
    return cfg, identity
