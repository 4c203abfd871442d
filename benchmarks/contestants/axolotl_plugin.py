"""Loaded by axolotl, in its own environment, as a plugin of its config: writes the moments of the run."""

import os
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

from benchmarks.clock import RECORD, Clock


class MomentsPlugin(BasePlugin):
    """Counts real tokens as they go into a step, and notes the step's end."""

    def __init__(self):
        super().__init__()
        self.clock = Clock(Path(os.environ[RECORD]))
        self.tokens = 0

    def register(self, cfg):
        self.clock.phase("imports")

    def pre_model_load(self, cfg):
        self.clock.phase("data")

    def post_trainer_create(self, cfg, trainer):
        self.clock.phase("model")
        step = trainer.training_step

        def counted(model, inputs, *args, **kwargs):
            # Packed rows come without a mask; token 0 is padding, and no document holds it.
            self.tokens += int((inputs["input_ids"] != 0).sum())
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = counted

    def add_callbacks_post_trainer(self, cfg, trainer):
        plugin = self

        class Tick(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                plugin.clock.step(plugin.tokens)
                plugin.tokens = 0

        return [Tick()]
