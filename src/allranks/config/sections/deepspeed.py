"""Keys of DeepSpeed."""

from typing import Any

from allranks.config.sections.section import FilePath, Section

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""Of its settings, those that say the batch."""


class DeepspeedConfig(Section):
    """Training with DeepSpeed ZeRO."""

    deepspeed: dict[str, Any] | FilePath | None = None
    """DeepSpeed's own settings: the path of its JSON file (from here or from the config's folder), or a mapping."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings; a loaded config has them as a mapping, whichever way they were given."""
        return self.deepspeed if isinstance(self.deepspeed, dict) else {}

    @property
    def stage(self) -> int:
        """The ZeRO stage; 0 shards nothing, also without `deepspeed`."""
        stage = self.zero.get("stage", 0)
        return stage if isinstance(stage, int) else 0

    @property
    def zero(self) -> dict[str, Any]:
        """`zero_optimization` of the settings."""
        return self.settings.get("zero_optimization") or {}

    @property
    def offloads(self) -> bool:
        """Whether optimizer state or parameters are kept in host memory."""
        return any((self.zero.get(key) or {}).get("device") == "cpu" for key in ("offload_optimizer", "offload_param"))
