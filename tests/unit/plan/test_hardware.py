"""Devices and links by the names that people, torch and nvidia-smi give them."""

from pathlib import Path

import pytest

from allranks.errors import ConfigError
from allranks.plan.flops import peak_flops
from allranks.plan.hardware import Device, find_device, find_link, find_reported

WHOLE = {
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "NVIDIA A100-PCIE-40GB": "a100-40gb-pcie",
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "AMD Instinct MI300X OAM": "mi300x",
}


@pytest.mark.parametrize(("reported", "name"), WHOLE.items())
def test_a_device_is_found_by_its_own_name_and_by_the_drivers(reported: str, name: str) -> None:
    assert find_device(reported).name == name
    assert find_device(name.upper()) == find_device(reported)


@pytest.mark.parametrize(
    "reported", ["NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L40", "cpu"]
)
def test_a_part_of_a_device_is_not_taken_for_it(reported: str) -> None:
    assert find_reported(reported) is None
    assert peak_flops(reported, half=True) is None


def test_short_names_mean_the_usual_device() -> None:
    assert find_device("h100").name == find_device("H100 SXM").name == "h100-80gb"
    assert find_device("a100").name == "a100-80gb"


def test_peaks_are_the_data_sheets_dense_ones() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", half=True) == 989e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", half=False) == 156e12


def test_every_device_has_a_source_and_a_known_link() -> None:
    for name in {*WHOLE.values(), "h800", "a800", "v100-16gb", "rtx-3090"}:
        device = find_device(name)
        assert device.source.startswith("https://")
        assert find_link(device.link).source.startswith("https://")
        assert device.bf16 >= device.tf32 >= device.fp32
        assert 1e10 < device.memory_bytes < 3e11


def test_unknown_names_say_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no device 'h10' is known; did you mean h100.*a100-80gb.*--device-file"):
        find_device("h10")
    for slip in ("h100-8gb", "h200x", "a100-80", "l4-48gb", "my h100"):
        with pytest.raises(ConfigError, match="is known"):
            find_device(slip)
    with pytest.raises(ConfigError, match=r"no link 'infiniband' is known.*ib-ndr.*25gbit"):
        find_link("infiniband")


@pytest.mark.parametrize(
    ("asked", "rate", "achieved"),
    [
        ("100gbit", 12.5e9, 0.5),
        ("100mbit", 12.5e6, 0.94),
        ("1.5 Gbit/s", 187.5e6, 0.94),
        ("25gbps", 3.125e9, 0.9),
        ("ndr", 50e9, 0.92),
        ("8xib-ndr", 400e9, 0.92),
        ("2x100gbit", 25e9, 0.5),
        ("8xroce-400", 400e9, 0.9),
        ("10GbE", 1.25e9, 0.94),
    ],
)
def test_a_link_is_a_name_or_a_rate_and_a_number_of_ports(asked: str, rate: float, achieved: float) -> None:
    link = find_link(asked)
    assert link.bytes_per_second == pytest.approx(rate)
    assert link.achieved == achieved


@pytest.mark.parametrize("asked", ["0xib-ndr", "x8", "0gbit", "gbit", ""])
def test_what_is_no_link_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="no link"):
        find_link(asked)


OWN = """
[devices.mine]
memory_gib = 48
bandwidth = 9e11
bf16 = 2e14
tf32 = 1e14
fp32 = 5e13
reported = ["Mine 48G"]
link = "fabric"

[links.fabric]
gigabytes_per_second = 20
latency_us = 3
achieved = 0.9
"""


def test_a_file_of_the_users_own_goes_first(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(OWN)
    mine = find_device("ACME Mine 48G", file)
    assert isinstance(mine, Device) and mine == find_device("mine", file)
    assert mine.memory_bytes == 48 * 2**30
    assert find_device("h200", file).name == "h200"
    assert find_link(mine.link, mine.file).bytes_per_second == 20e9
    assert find_link("2xfabric", file).bytes_per_second == 40e9


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("bf16 = 2e14", "bf16 = 0"),
        ("bf16 = 2e14", "bf16 = true"),
        ("bf16 = 2e14", "bf16 = 1" + 400 * "0"),
        ("memory_gib = 48", "memory_gib = inf"),
        ("memory_gib = 48", "memory_gib = 48\nmatmul = 80"),
        ("achieved = 0.9", "achieved = 90"),
        ("memory_gib = 48", ""),
        ("memory_gib = 48", "memory = 48"),
        ('reported = ["Mine 48G"]', 'reported = "Mine"'),
        ("[devices.mine]", "devices = 3"),
    ],
)
def test_what_is_wrong_in_it_is_named_with_its_place(tmp_path: Path, changed: str, says: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(OWN.replace(changed, says))
    with pytest.raises(ConfigError, match=r"wrong\.toml: "):
        find_link(find_device("mine", file).link, file)


@pytest.mark.parametrize(
    ("text", "gigabits"),
    [("100gbit", 100), ("100Gb/s", 100), ("100 Gbps", 100), ("12.5GB/s", 100), ("125 MB/s", 1), ("100mbit", 0.1)],
)
def test_a_rate_of_bytes_is_one_of_eight_times_as_many_bits(text: str, gigabits: float) -> None:
    found = find_link(text)
    assert found.bytes_per_second == pytest.approx(gigabits * 1e9 / 8)
