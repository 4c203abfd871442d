"""A plain PyTorch loop that does the same work, with nothing around it: packed blocks, isolated documents, logits only
where there is a label. `python -m benchmarks.contestants.bare DIRECTORY RECORD`
"""

import json
import random
import sys
from pathlib import Path

from benchmarks.clock import Clock
from benchmarks.workload import UNSUPERVISED, Workload, read


def main(directory: Path, record: Path) -> None:
    clock = Clock(record)
    import torch
    import torch.nn.functional as F
    from transformers import AttentionInterface, AutoModelForCausalLM

    clock.phase("imports")
    workload = read(directory)
    blocks = pack(directory / "train.jsonl", workload)
    random.Random(workload.seed).shuffle(blocks)
    clock.phase("data")

    lengths: list[int] = []  # of the documents of the step's row, for the attention below

    def attend(module, query, key, value, mask, scaling=None, **kwargs):
        """Every document by itself, causally; shapes [1, heads, T, D] -> [1, T, heads, D]."""
        parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        outputs = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling) for q, k, v in parts]
        return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None

    AttentionInterface.register("each_document", attend)
    model = AutoModelForCausalLM.from_pretrained(
        directory / "model", dtype=torch.float32, attn_implementation="each_document"
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.learning_rate, weight_decay=0.0, fused=True)
    clock.phase("model")

    for step in range(workload.num_steps):
        chosen = [blocks[(step * workload.blocks_per_step + i) % len(blocks)] for i in range(workload.blocks_per_step)]
        documents = [document for block in chosen for document in block]
        tokens = sum(len(document["input_ids"]) for document in documents)
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for document in documents:
            ids += document["input_ids"]
            labels += [*document["labels"][1:], UNSUPERVISED]  # position t predicts token t + 1
            positions += range(len(document["input_ids"]))
        # Every step has the same shape, as on a device that compiles for it: what is left over is one more document.
        padding = workload.blocks_per_step * workload.sequence_len - tokens
        lengths[:] = [len(document["input_ids"]) for document in documents] + ([padding] if padding else [])
        ids += [0] * padding
        positions += range(padding)
        labels += [UNSUPERVISED] * padding

        targets = torch.tensor(labels)
        hidden = model.model(
            input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False
        ).last_hidden_state[0]
        supervised = targets != UNSUPERVISED
        loss = F.cross_entropy(model.lm_head(hidden[supervised]), targets[supervised])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # it is read at every step, as everybody who watches it does
        clock.step(tokens)


def pack(path: Path, workload: Workload) -> list[list[dict[str, list[int]]]]:
    """Documents into blocks of at most sequence_len tokens: longest first, each to the fullest that takes it."""
    documents = [json.loads(line) for line in path.open()]
    documents.sort(key=lambda document: -len(document["input_ids"]))
    blocks: list[list[dict[str, list[int]]]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> blocks that have exactly that many
    for document in documents:
        size = len(document["input_ids"])
        room = next((free for free in range(size, workload.sequence_len) if with_room.get(free)), None)
        if room is None:
            blocks.append([])
            index, room = len(blocks) - 1, workload.sequence_len
        else:
            index = with_room[room].pop()
        blocks[index].append(document)
        with_room.setdefault(room - size, []).append(index)
    return blocks


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
