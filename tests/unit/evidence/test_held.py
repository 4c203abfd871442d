"""A rank whose thread waits in the kernel beside the one that trains: it is named, with the place of that thread."""

from allranks.evidence.diagnose import diagnose, frames_of

SAVES = "/v/site-packages/allranks/train/checkpoint.py"
WAITING = {"trains": True, "frames": [["/usr/lib/threading.py", 1, "wait"], [SAVES, 9, "wait"], [SAVES, 8, "save"]]}
SAVER = "/v/site-packages/torch/distributed/checkpoint/state_dict_saver.py"
WRITING = {"frames": [["/usr/lib/python3.11/pathlib.py", 70, "mkdir"], [SAVER, 472, "local_step"]]}


def about(node: int, threads: list[dict], *held: dict) -> dict:
    rank = {"rank": node, "process": {"state": "S"}, "threads": threads, "held_threads": list(held)}
    return {"node": node, "host": f"gpu{node}", "ranks": [rank]}


def test_a_save_that_a_dead_disk_holds_names_its_rank():
    held = {"thread": 7, "comm": "pt_save", "wchan": "rpc_wait_bit_killable"}
    found = diagnose([about(0, [WAITING]), about(1, [WAITING, WRITING], held)])
    assert found.what == (
        "rank 1 (node 1, gpu1) waits in the kernel, for storage or a device (state D); rank 1 is at "
        "/usr/lib/python3.11/pathlib.py:70 in mkdir"
    )
    assert (found.who.node, found.who.rank) == (1, 1)
    lines = [one.text for one in found.evidence]
    assert "rank 1: its thread pt_save waits in the kernel at rpc_wait_bit_killable" in lines
    assert "dmesg" in found.remedy


def test_only_a_rank_that_waits_for_its_save_is_where_that_is():
    training = {"trains": True, "frames": [["/v/site-packages/allranks/train/loop.py", 5, "train"]]}
    assert frames_of({"threads": [training, WRITING]})[0].line == 5
    assert frames_of({"threads": [WAITING, WRITING]})[0].line == 70 and frames_of({"threads": [WAITING]})[0].line == 1


def test_what_is_no_list_of_threads_holds_nobody():
    for strange in ("D", 7, None, []):
        rank = {"rank": 0, "process": {"state": "S"}, "threads": [], "held_threads": strange}
        assert "waits in the kernel" not in diagnose([{"node": 0, "host": "a", "ranks": [rank]}]).what
