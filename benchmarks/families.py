"""Which causal language models of the installed transformers `allranks rehearse` can make a small copy of.

    OMP_NUM_THREADS=1 python -m benchmarks.families [KIND …]

Each is its library's default config, which of some kinds is none that was ever published: their own code refuses it. It
takes a quarter of an hour; a line each, and the counts at the end.
"""

from __future__ import annotations

import sys

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from allranks.errors import ConfigError
from allranks.model.shrink import random_model, shrink


def main(kinds: list[str]) -> None:
    failed = 0
    for kind in kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            model = random_model(shrink(AutoConfig.for_model(kind)).config)
        except ConfigError as error:
            told = str(error).removeprefix("base_model: ")
        except Exception as error:  # a default config that its own class refuses
            told = f"its default config is none: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            print(f"{kind}: {sum(one.numel() for one in model.parameters()) / 1e6:.1f} M parameters", flush=True)
            continue
        failed += 1
        print(f"{kind}: FAILED: {told}", flush=True)
    print(f"{failed} failed")


if __name__ == "__main__":
    main(sys.argv[1:])
