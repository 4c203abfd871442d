"""Formats, chat templates, label masks, packing, and the prepared data set. numpy is all that reading needs."""

from allranks.data.batches import BatchPlan, StepPlan
from allranks.data.blocks import BlockSet
from allranks.data.collate import MicroBatch, collate
from allranks.data.order import BlockOrder
from allranks.data.prepare import prepare
from allranks.data.store import Prepared
from allranks.data.tokenizer import load_tokenizer

__all__ = [
    "BatchPlan",
    "BlockOrder",
    "BlockSet",
    "MicroBatch",
    "Prepared",
    "StepPlan",
    "collate",
    "load_tokenizer",
    "prepare",
]
