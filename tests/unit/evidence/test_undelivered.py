"""Ranks that wait since the network does not carry what they send: which, and on which nodes."""

from allranks.evidence.diagnose import diagnose

ENTRY = {"record": 1, "group": "0", "sequence": 7, "operation": "all_reduce", "input_sizes": [[8]], "dtypes": ["Float"]}
GROUPS = [{"name": "0", "desc": "default_pg", "ranks": [0, 1]}]


def about(node: int, *sockets: dict, entered: bool = True) -> dict:
    recording = {"entries": [{**ENTRY, "is_done": not entered}], "groups": GROUPS, "enqueued": {"0": 7}}
    rank = {"rank": node, "process": {"state": "S"}, "sockets": list(sockets), "recording": recording, "threads": []}
    return {"node": node, "host": f"gpu{node}", "ranks": [rank]}


def socket(local: str, peer: str, num_bytes: int = 0, retransmits: int = 0) -> dict:
    return {"local": local, "peer": peer, "send_queue_bytes": num_bytes, "retransmits": retransmits}


def test_both_ends_are_named_with_their_nodes():
    one, other = "10.0.0.1:50000", "10.0.0.2:60000"
    found = diagnose([about(0, socket(one, other, 65536, 6)), about(1, socket(other, one))])
    assert found.what.startswith(
        "what rank 0 (node 0, gpu0) sends to rank 1 (node 1, gpu1) does not arrive (65536 bytes, sent again and "
        "again); all ranks entered all_reduce of 8 float (number 7) and none left it"
    )
    assert "firewalls, routes, cables" in found.remedy
    assert (found.who.node, found.who.rank) == (None, None)


def test_an_end_that_nobody_says_to_be_its_own_is_named_by_its_address():
    found = diagnose([about(0, socket("10.0.0.1:50000", "10.0.0.9:1", 10, 9)), about(1)])
    assert found.what.startswith("what rank 0 (node 0, gpu0) sends to 10.0.0.9:1 does not arrive")


def test_what_waits_to_be_read_or_was_lost_once_is_no_broken_link():
    for sent in (socket("10.0.0.1:5", "10.0.0.2:6", 65536, 0), socket("10.0.0.1:5", "10.0.0.2:6", 65536, 2)):
        assert "does not arrive" not in diagnose([about(0, sent), about(1)]).what


def test_a_rank_that_has_not_entered_is_the_cause_whatever_the_network_does():
    late = about(1, entered=True)
    late["ranks"][0]["recording"] = {"entries": [], "groups": GROUPS, "enqueued": {"0": 6}}
    late["ranks"][0]["threads"] = [{"trains": True, "frames": [["/home/ana/data.py", 3, "read"]]}]
    found = diagnose([about(0, socket("10.0.0.1:5", "10.0.0.2:6", 9, 9)), late])
    assert "rank 1 (node 1, gpu1) never entered" in found.what
