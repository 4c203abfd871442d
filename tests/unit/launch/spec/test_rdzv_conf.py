"""torchrun's --rdzv-conf, as it reads it."""

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousParameters
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config
from torch.distributed.run import get_args_parser

from allranks.launch.spec.rdzv_conf import is_host, rdzv_conf


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--rdzv-conf", "join_timeout=60, is_host = 1"),
        ("--rdzv_conf=is_host=True",),
        ("--rdzv-conf", "is_host=1", "--rdzv-conf", "is_host=no"),
        ("--monitor-interval", "1", "--rdzv_conf", "is_host=f"),
    ],
)
def test_it_is_read_as_torchrun_reads_it(words: tuple[str, ...]) -> None:
    given = _parse_rendezvous_config(get_args_parser().parse_args([*words, "x.py"]).rdzv_conf)
    assert rdzv_conf(words) == given
    assert is_host(words) == RendezvousParameters("c10d", "", "", 1, 1, **given).get_as_bool("is_host")
