"""One rank of a run, under a launcher of the user's: `torchrun … -m allranks.train config.yaml [--key value …]`."""

import os
import sys
from collections.abc import Mapping

from allranks.config import RunConfig, load_config
from allranks.config.overrides import parse_overrides
from allranks.config.yaml_lines import read_yaml
from allranks.exit_codes import DONE
from allranks.exit_codes import USAGE as USAGE_ERROR
from allranks.observe import say
from allranks.train.entry import run_rank

RESOLVED = "--resolved"  # as `allranks.launch.spec.program` writes it: the config is read as it is
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
        sys.exit(DONE if argv else USAGE_ERROR)
    is_resolved = argv[1:] == [RESOLVED]
    keys = [word for word in argv[1:] if not is_resolved and word.replace("_", "-") != IGNORE_UNSUPPORTED]

    ignore = not is_resolved and len(keys) < len(argv) - 1

    def read(also: Mapping[str, str]) -> RunConfig:
        if is_resolved and not also:
            return RunConfig.from_resolved(read_yaml(argv[0])[0], source=argv[0])
        return load_config(argv[0], {**parse_overrides(keys), **also}, ignore_unsupported=ignore)

    run_rank(read)


if __name__ == "__main__":
    main(sys.argv[1:])
