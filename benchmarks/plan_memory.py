"""The traced memory of the cases that `benchmarks.plan_peaks` measures, beside their closed form, in MB.

    python -m benchmarks.plan_memory                       each case that can be traced: some minutes
    python -m benchmarks.plan_memory --only "llama, fsdp2" those whose name has these words

gloo's copies are left out: what its threads take is not in the measured peaks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from allranks.errors import ConfigError
from allranks.trace.asked import Asked, refuse, traced_keys
from allranks.trace.child import peaks
from allranks.trace.layers import largest
from benchmarks.plan_peaks import Case, cases, write_models


def traced(case: Case, folder: Path) -> float:
    """Bytes of rank 0 when it holds most. Raises ConfigError for what cannot be traced."""
    cfg = case.config(folder)
    refuse(cfg, case.num_ranks, case.num_ranks)
    model = json.loads((folder / case.model / "config.json").read_text())
    size = cfg.optimizer.micro_batch_size
    asked = Asked(
        keys=traced_keys(cfg, micro_batch_size=size, on_cpu=True),
        model=model,
        num_ranks=case.num_ranks,
        ranks_per_node=case.num_ranks,
        num_micro_batches=cfg.optimizer.gradient_accumulation_steps,
        lengths=(cfg.data.sequence_len,) * size,
        labelled=1.0,
        on_cpu=True,
        every_layer=True,
    )
    return float(sum(largest(peaks(asked, model, gloo=False)).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has these words")
    only = parser.parse_args().only
    print("| model, strategy, what is trained | traced | closed form | its difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        for case in cases():
            if only not in case.name:
                continue
            try:
                found = traced(case, folder)
            except ConfigError:
                continue
            closed = case.predicted(folder)
            print(f"| {case.name} | {found / 1e6:.1f} | {closed / 1e6:.1f} | {closed / found - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
