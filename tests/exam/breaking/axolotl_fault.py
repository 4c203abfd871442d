"""A plugin of axolotl's that breaks the run as FAULT says, on rank 1 before the third step."""

import os
import signal
import time

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

FAULT = os.environ.get("FAULT", "")


class Breaking(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if os.environ.get("RANK", "0") != "1" or state.global_step != 2:
            return
        if FAULT == "exception":
            raise ValueError("bad batch 17")
        if FAULT == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULT == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if FAULT == "late":
            time.sleep(600)
        if FAULT == "host-memory":
            torch.zeros(1 << 50)


class FaultPlugin(BasePlugin):
    def register(self, cfg):
        """Two ranks on a CPU: axolotl gives each the GPU of its number, which is not there."""
        from axolotl.loaders.model import ModelLoader

        choose = ModelLoader._set_device_map_config

        def on_cpu(loader):
            choose(loader)
            loader.model_kwargs["device_map"] = {"": "cpu"}

        ModelLoader._set_device_map_config = on_cpu

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [Breaking()]
