from allranks.launch.spec.by_hand import by_hand, without_options


def test_the_place_of_a_node_comes_before_a_lone_dash():
    words = ["train", "c.yaml", "--max-steps", "2", "--", "--rdzv-conf", "timeout=5"]
    assert by_hand(words, num_nodes=3, node_rank=1, address="10.0.0.1", port=29500, nproc_per_node=8) == [
        *words[:4],
        *["--nnodes", "3", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "29500"],
        *["--nproc-per-node", "8"],
        *words[4:],
    ]


def test_one_node_has_no_place_and_is_told_so():
    assert by_hand(["train", "c"], num_nodes=1, node_rank=0, address="", port=0, nproc_per_node=None) == [
        *["train", "c", "--nnodes", "1"]
    ]


def test_options_go_in_every_spelling_and_what_follows_a_lone_dash_stays():
    words = [
        "train",
        "--hosts",
        "a,b",
        "c",
        "--hosts=x",
        "--remote_start",
        "ssh",
        "--hostsfoo",
        "1",
        "--",
        "--hosts",
        "y",
    ]
    assert without_options(words, {"--hosts", "--remote-start"}) == [
        "train",
        "c",
        "--hostsfoo",
        "1",
        "--",
        "--hosts",
        "y",
    ]
