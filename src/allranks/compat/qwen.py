"""Qwen's finetune.py: the same argument list, the engine of `allranks train`.

    torchrun … -m allranks.compat.qwen --model_name_or_path … --data_path … --output_dir …

Qwen's shell scripts start `finetune.py`; this file in its place lets them run unchanged:

    from allranks.compat.qwen import main; main()
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from allranks.config import RunConfig
from allranks.config.foreign.finetune import arguments_help, read_finetune
from allranks.config.foreign.qwen import refuse_quantized, refuse_with_zero3
from allranks.config.load import resolve_mapping
from allranks.exit_codes import DONE
from allranks.exit_codes import USAGE as USAGE_ERROR
from allranks.observe import say
from allranks.train.entry import run_rank

IGNORE_UNSUPPORTED = "--ignore-unsupported"
USAGE = f"""\
usage: torchrun … -m allranks.compat.qwen --data_path FILE --output_dir FOLDER [--name value …] [{IGNORE_UNSUPPORTED}]

The arguments of Qwen's finetune.py, with its defaults; and, beyond them, any key of `allranks train`'s config.

finetune.py's argument, and the config's key where its name is another:"""


def main(argv: Sequence[str] | None = None) -> None:
    """Train one rank as `finetune.py ARGV` would; ends the process."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or {"-h", "--help"} & set(argv):
        say(f"{USAGE}\n{arguments_help()}" if argv else USAGE.splitlines()[0], file=sys.stdout if argv else sys.stderr)
        sys.exit(DONE if argv else USAGE_ERROR)
    words = [word for word in argv if word.replace("_", "-") != IGNORE_UNSUPPORTED]

    def read(also: Mapping[str, str]) -> RunConfig:
        asked = read_finetune(words)
        cfg = resolve_mapping(
            asked.flat,
            "finetune.py",
            {**asked.overrides, **also},
            flags=asked.written,
            ignore_unsupported=len(words) < len(argv),
        )
        refuse_quantized(cfg.model.base_model)
        if "lora_modules_to_save" in asked.flat:
            refuse_with_zero3(cfg.model.base_model, cfg)
        os.environ.update(asked.environment)
        return replace(cfg, warnings=(*asked.notes, *cfg.warnings))

    run_rank(read)


if __name__ == "__main__":
    main()
