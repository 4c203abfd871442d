"""One rank of a run, under a launcher of the user's: `torchrun … -m allranks.train config.yaml [--key value …]`."""

import os
import sys

from allranks.cluster.identity import identify, refuse_part_of_a_job
from allranks.config import load_config
from allranks.config.overrides import parse_overrides
from allranks.errors import AllranksError
from allranks.observe import die_with_parent, say
from allranks.train.under_accelerate import (
    check_accelerate,
    forget_accelerate,
    layers_named_only_there,
    refuse_one_process_of_several,
)

IGNORE_UNSUPPORTED = "--ignore-unsupported"
USAGE = (
    f"usage: python -m allranks.train CONFIG [{IGNORE_UNSUPPORTED}] [--key value …]\n"
    "under torchrun, accelerate launch, deepspeed, srun or mpirun, which number the ranks"
)


def main(argv: list[str]) -> None:
    # `deepspeed` without --no_local_rank puts it before all else; LOCAL_RANK says the same.
    argv = [word for word in argv if word != f"--local_rank={os.environ.get('LOCAL_RANK')}"]
    if not argv or argv[0] in ("-h", "--help"):
        say(USAGE, file=sys.stdout if argv else sys.stderr)
        sys.exit(0 if argv else 2)
    keys = [word for word in argv[1:] if word.replace("_", "-") != IGNORE_UNSUPPORTED]
    try:
        identity = identify(os.environ)
        refuse_part_of_a_job(os.environ)
        refuse_one_process_of_several()
        overrides = parse_overrides(keys)
        ignore = len(keys) < len(argv) - 1
        cfg = load_config(argv[0], overrides, ignore_unsupported=ignore)
        check_accelerate(cfg)
        if layers := layers_named_only_there(cfg):
            cfg = load_config(argv[0], {**overrides, **layers}, ignore_unsupported=ignore)
        forget_accelerate()
    except AllranksError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if identity.rank == 0:
        for warning in cfg.warnings:
            say(f"warning: {warning}", file=sys.stderr)
    if "ALLRANKS_RUN_ID" in os.environ:
        die_with_parent()  # `allranks train` started the agent that started this rank: none of them goes on alone
    # Only now: usage and config errors should not wait for torch.
    from allranks.train.main import main_rank
    from allranks.train.signals import PREEMPTED
    from allranks.train.world import leave

    code = main_rank(cfg, identity)
    if code == PREEMPTED and "ALLRANKS_RUN_ID" in os.environ:
        # The launcher reads 75 from the `exit` event; the agent would take it for a failure and restart the rank.
        code = 0
    leave(code, identity)


if __name__ == "__main__":
    main(sys.argv[1:])
