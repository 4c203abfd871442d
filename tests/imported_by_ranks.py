"""What ranks import, also on their way; see warm.py."""

import gc
import importlib

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

for name in (
    "allranks.export.adapter",
    "allranks.export.export",
    "allranks.model.adapter",
    "allranks.train.__main__",
    "allranks.train.main",
    "peft",
    "peft.tuners.lora.bnb",
    "rich.console",
    "torch._dynamo",
    "torch.multiprocessing",
    "transformers.convert_slow_tokenizer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
):
    importlib.import_module(name)

get_checkpoint_conversion_mapping("qwen3")  # a table that a process makes once
gc.freeze()  # else the first collection in every fork goes through all of it, and copies its pages
