import pytest

from allranks.cluster.gpus import _visible_gpus, count_gpus


@pytest.mark.parametrize(
    ("visible", "total", "count"),
    [
        ("0,1", 8, 2),
        ("0, 3,5", 8, 3),
        ("0,9,1", 8, 1),  # CUDA stops at the first that does not exist
        ("-1", 8, 0),
        ("GPU-2bf6,GPU-77aa", 8, 2),
        ("MIG-5ab1", 1, 1),
        ("0", 0, 0),
        ("GPU-2bf6", 0, 0),
    ],
)
def test_visible_devices_are_counted_as_cuda_reads_them(visible, total, count):
    assert _visible_gpus(visible, total) == count


def test_an_empty_list_hides_all():
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
