"""Lists of the nodes that passed and failed."""

from allranks.cluster.nodes import Host
from allranks.findings import Finding
from allranks.launch.preflight.hosts import write_host_lists
from allranks.launch.preflight.together import Judged
from allranks.preflight.judgement import Judgement, Reported


def test_names_are_those_that_the_user_gave(tmp_path):
    hosts = ("a1", "a2", "a3", "a4")
    failed = Reported(Finding("clock.spread", "a2, a4: off"), ("a2", "a4"), "failed")
    judged = Judged(Judgement(hosts, "a1", (), (failed,)), hosts, 1.0)
    named = [Host("10.0.0.1", 8), Host("10.0.0.2", 8), Host("gpu3", user="me"), Host("gpu4")]
    write_host_lists(tmp_path / "named", judged, named)
    read = {path.name: path.read_text() for path in (tmp_path / "named").iterdir()}
    assert read == {
        "passing": "10.0.0.1 slots=8\nme@gpu3\n",
        "failing": "10.0.0.2 slots=8\ngpu4\n",
        "slurm-exclude": "10.0.0.2,gpu4\n",
        "pbs-select": "1:host=10.0.0.1+1:host=gpu3\n",
    }
    write_host_lists(tmp_path / "own", judged)
    assert (tmp_path / "own" / "slurm-exclude").read_text() == "a[2,4]\n"
