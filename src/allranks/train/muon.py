"""Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of hidden layers, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from allranks.train.groups import Trained


class MuonAndAdamW(Optimizer):
    """One optimizer to the loop and to checkpoints; each group is stepped by one of torch's two.

    A group's `muon` says by which. Both learn at the group's rate: with `adjust_lr_fn="match_rms_adamw"`
    (https://arxiv.org/abs/2502.16982) Muon's updates are as large as AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], *, muon: dict[str, Any], adamw: dict[str, Any], lr: float) -> None:
        settings = {True: {**muon, "lr": lr}, False: {**adamw, "lr": lr}}
        # torch's own optimizers check their settings and fill in the rest of them.
        self._parts: dict[bool, Optimizer] = {}
        for by_muon, kind in ((True, Muon), (False, AdamW)):
            mine = [group for group in groups if group["muon"] is by_muon]
            if mine:
                self._parts[by_muon] = kind(mine, **settings[by_muon])
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for by_muon, part in self._parts.items():
            # Loading a state makes new groups.
            part.param_groups = [group for group in self.param_groups if group["muon"] is by_muon]
            part.state = self.state
            part.step()
        return loss


def split_for_muon(groups: list[dict[str, Any]], trained: list[Trained]) -> list[dict[str, Any]]:
    """The same groups, each parted into what Muon steps (`muon: True`) and what AdamW steps."""
    matrices = {id(one.parameter) for one in trained if one.is_matrix}
    parted = []
    for group in groups:
        for by_muon in (True, False):
            mine = [parameter for parameter in group["params"] if (id(parameter) in matrices) is by_muon]
            if mine:
                parted.append({**group, "params": mine, "muon": by_muon})
    return parted
