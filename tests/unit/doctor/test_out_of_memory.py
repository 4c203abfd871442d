"""Out of memory: one message of what was short, how much was held by what, and what to change, best first."""

import re

import numpy as np
import pytest

from allranks.config.load import resolve_mapping
from allranks.doctor import causes
from allranks.doctor.memory import Held, Shortage, account, shortage, told
from allranks.doctor.memory_remedies import Ranks, listed, remedies, with_account
from allranks.findings import Finding, Who
from allranks.observe.events import MemoryEvent, StepEvent

GIB = 2**30

# As torch 2.13 words it (c10/cuda/CUDACachingAllocator.cpp), on a GPU that another process uses, too.
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 79.11 GiB of which 1.13 GiB is "
    "free. Process 4711 has 8.00 GiB memory in use. Including non-PyTorch memory, this process has 69.97 GiB memory in "
    "use. Of the allocated memory 64.20 GiB is allocated by PyTorch, and 4.90 GiB is reserved by PyTorch but "
    "unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation. See documentation for Memory Management "
    "(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)


class OutOfMemoryError(RuntimeError):
    """torch's own is made only by torch."""


def flat(**keys):
    return {"base_model": "m", "datasets": [{"path": "d", "type": "alpaca"}], "learning_rate": 1e-4, **keys}


def config(**keys):
    return resolve_mapping(flat(**keys))


def test_torchs_message_of_a_gpu():
    short = shortage(OutOfMemoryError(CUDA))
    assert short == Shortage(
        "GPU 3",
        tried=2 * GIB,
        limit=int(79.11 * GIB),
        held=int(64.2 * GIB),
        unused=int(4.9 * GIB),
        others=8 * GIB,
    )
    assert told(short) == "out of memory on GPU 3, which has 79.1 GiB: 2.0 GiB more could not be had"
    lines = account(Held(14 * GIB, 14 * GIB, 28 * GIB, 8 * GIB), short)
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["parameters", "14.0 GiB"],
        ["gradients", "14.0 GiB"],
        ["optimizer states", "28.0 GiB"],
        ["activations and the rest", "8.0 GiB"],
        ["reserved, not in use", "4.9 GiB"],
        ["other processes", "8.0 GiB"],
    ]


@pytest.mark.parametrize(
    ("error", "where", "tried"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), "the GPU", None),
        (RuntimeError("NCCL error …\nCuda failure 2 'out of memory'"), "the GPU", None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "the GPU", None),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried "
                      "to allocate 1073741824 bytes. Error code 12 (Cannot allocate memory)"), "host", GIB),
        (MemoryError(), "host", None),
        (OSError(12, "Cannot allocate memory"), "host", None),
        (RuntimeError("std::bad_alloc"), "host", None),
    ],
)  # fmt: skip
def test_other_words_for_it(error, where, tried):
    short = shortage(error)
    assert short is not None and (short.where, short.tried) == (where, tried)


def test_numpys_own():
    with pytest.raises(MemoryError) as error:
        np.empty(2**55, np.uint8)
    assert shortage(error.value).tried == 2**55


@pytest.mark.parametrize("text", ["shape mismatch", "memory", "CUDA error: an illegal memory access was encountered"])
def test_what_is_no_shortage(text):
    assert shortage(RuntimeError(text)) is None


def test_what_frees_most_comes_first_with_what_it_frees():
    held = Held(parameters=14 * GIB, gradients=14 * GIB, optimizer=28 * GIB, rest=34 * GIB)
    cfg = config(bf16=True, micro_batch_size=4, gradient_accumulation_steps=2)
    lines = remedies(cfg, held, Ranks("fsdp", 8, 8), Shortage("GPU 0"), env={})
    assert lines == [
        "fsdp_config.offload_params: true (in host memory; slower): about 56.0 GiB less",
        "adapter: lora (gradients and states of the adapter only): about 42.0 GiB less",
        "gradient_checkpointing: true (a third more computation): about 32.0 GiB less",
        "more nodes (8 ranks share the states; twice as many hold half each): about 28.0 GiB less",
        "optimizer: adamw_torch_8bit: about 21.0 GiB less",
        "micro_batch_size: 2, gradient_accumulation_steps: 4 (the same global batch): about 17.0 GiB less",
    ]
    assert listed(lines).splitlines()[:2] == ["to need less, what frees most first:", f"  {lines[0]}"]
    assert listed([]) == ""


# What is set already -> what may not be advised.
SET = [
    ({"gradient_checkpointing": True}, "gradient_checkpointing: true"),
    ({"gradient_checkpointing": "offload"}, "gradient_checkpointing"),
    ({"micro_batch_size": 1}, "micro_batch_size"),
    ({"sequence_len": 512}, "sequence_len"),
    ({"adapter": "lora", "lora_r": 8, "lora_alpha": 8}, "adapter: lora"),
    ({"adapter": "qlora", "lora_r": 8, "lora_alpha": 8, "load_in_4bit": True}, "adapter"),
    ({"optimizer": "adamw_bnb_8bit"}, "optimizer:"),
    ({"bf16": True}, "bf16"),
    ({"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, "offload_params"),
    ({"fsdp_version": 2}, "fsdp_version"),
]


@pytest.mark.parametrize(("keys", "never"), SET, ids=str)
@pytest.mark.parametrize("where", ["host", "GPU 0"])
def test_what_is_set_is_not_advised(keys, never, where):
    cfg = config(**{"bf16": False, "micro_batch_size": 8, "sequence_len": 4096, **keys})
    ranks = Ranks("fsdp" if cfg.parallel.uses_fsdp else "ddp", 4, 4)
    # Everything alike, so that nothing is cut off the list for being small.
    found = "\n".join(remedies(cfg, Held(GIB, GIB, GIB, GIB), ranks, Shortage(where), env={}))
    if not (where == "host" and never in ("offload_params", "gradient_checkpointing")):  # there it says: switch it off
        assert never not in found
    assert found


def test_memory_in_pieces_and_of_others_is_told_before_the_config():
    short = Shortage("GPU 0", tried=GIB, unused=30 * GIB, others=20 * GIB)
    lines = remedies(config(), Held(GIB, GIB, GIB, GIB), Ranks("single"), short, env={})
    assert "expandable_segments:True" in lines[0] and "end the other processes on this GPU" in lines[1]
    env = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert "expandable" not in remedies(config(), Held(), Ranks("single"), short, env=env)[0]


def test_a_killed_rank_is_told_with_what_it_had_said_that_it_holds():
    killed = Finding(causes.OUT_OF_MEMORY, "rank 1 (node 0) failed first: killed", who=Who(0, 1))
    sizes = {"parameters_bytes": GIB, "gradients_bytes": GIB, "optimizer_bytes": 2 * GIB}
    memory = MemoryEvent(rank=1, device="cpu", **sizes)
    other = StepEvent(rank=0, memory_bytes=77 * GIB)
    step = StepEvent(rank=1, memory_bytes=10 * GIB)
    found = with_account(killed, [memory, step, other], config(), world_size=2, on_this_host=2)
    text = [one.text for one in found.evidence]
    assert text[-1].endswith("6.0 GiB") and text[-1].startswith("activations and the rest") and len(text) == 4
    assert found.remedy.splitlines()[1] == "  --nproc-per-node 1 (fewer ranks on this host): about 10.0 GiB less"
    # Before its first step: the ranks' part of the limit.
    found = with_account(killed, [memory, other], config(), world_size=2, on_this_host=2, limit_bytes=24 * GIB)
    assert [one.text for one in found.evidence][-1].endswith("8.0 GiB")
    assert "gradient_checkpointing: true" in with_account(killed, [], config(), 2, 2).remedy
