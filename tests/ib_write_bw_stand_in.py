#!/usr/bin/env python3
"""A stand-in for perftest's ib_write_bw on machines without RDMA: NOT the tool. Two of them meet over TCP as the real
ones do, and print a table in its form; the rate in it is no measurement, but the lower of what the two were told.

`install` writes it, and `ib_write_bw.json` beside it: `gbits`, `version` ("4.5" lacks some options of "26.04"), `fails`
(what it writes as an error) and `hangs`.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

SYMMETRIC = ("-s", "-D", "--report_gbits")
FLAGS = ("-F", "--report_gbits", "--ipv6-addr", "--help")
VALUES = ("-d", "-i", "-p", "-x", "-D", "-s", "--bind_source_ip")
NEW = ("--bind_source_ip", "--ipv6-addr")
LINE = "-" * 87


def install(folder: Path, **told: object) -> Path:
    """Into a folder of PATH."""
    path = folder / "ib_write_bw"
    path.write_text(text())
    path.chmod(0o755)
    (folder / "ib_write_bw.json").write_text(settings(**told))
    return path


def text() -> str:
    return Path(__file__).read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1)


def settings(*, gbits: float = 195.0, version: str = "26.04", fails: str = "", hangs: bool = False) -> str:
    return json.dumps({"gbits": gbits, "version": version, "fails": fails, "hangs": hangs})


def main(argv: list[str]) -> int:
    told = json.loads((Path(sys.argv[0]).parent / "ib_write_bw.json").read_text())
    known = [one for one in (*FLAGS, *VALUES) if told["version"] != "4.5" or one not in NEW]
    if "--help" in argv:
        print("Usage:\n  ib_write_bw            start a server and wait for connection")
        print("".join(f"  {one} \n" for one in known))
        return 1  # as the real one
    options, host = {}, ""
    words = iter(argv)
    for word in words:
        if word.startswith("-") and word not in known:
            print(f"ib_write_bw: unrecognized option '{word}'\n Invalid Command line.", file=sys.stderr)
            return 1
        if word in VALUES:
            options[word] = next(words)
        elif word.startswith("-"):
            options[word] = ""
        else:
            host = word
    if told["hangs"]:
        time.sleep(1000)
    if told["fails"]:
        print(f" {told['fails']}", file=sys.stderr)
        return 1
    own = {"gbits": told["gbits"], "options": {name: options.get(name) for name in SYMMETRIC}}
    other = _client(host, options, own) if host else _server(options, own)
    if other is None:
        return 1
    if other["options"] != own["options"]:
        print(" Failed to negotiate parameters", file=sys.stderr)
        return 1
    _table(options, min(own["gbits"], other["gbits"]), told["version"], is_client=bool(host))
    return 0


def _server(options: dict[str, str], own: dict[str, object]) -> dict[str, object] | None:
    family = socket.AF_INET6 if "--ipv6-addr" in options else socket.AF_INET
    with socket.socket(family) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((options.get("--bind_source_ip", ""), int(options["-p"])))
        except OSError:
            print(f"Couldn't listen to port {options['-p']}", file=sys.stderr)
            return None
        opened.listen(1)
        came, _ = opened.accept()
    with came:
        return _exchanged(came, own)


def _client(host: str, options: dict[str, str], own: dict[str, object]) -> dict[str, object] | None:
    source = (options["--bind_source_ip"], 0) if "--bind_source_ip" in options else None
    try:
        opened = socket.create_connection((host, int(options["-p"])), source_address=source)
    except OSError:
        print(f"Couldn't connect to {host}:{options['-p']}", file=sys.stderr)
        print(" Unable to init the socket connection", file=sys.stderr)
        return None
    with opened:
        return _exchanged(opened, own)


def _exchanged(opened: socket.socket, own: dict[str, object]) -> dict[str, object]:
    opened.sendall(json.dumps(own).encode() + b"\n")
    with opened.makefile() as lines:
        return json.loads(lines.readline())


def _table(options: dict[str, str], gbits: float, version: str, *, is_client: bool) -> None:
    rate, unit = gbits, "Gb/sec"
    if "--report_gbits" not in options:
        rate, unit = gbits * 1e9 / 8 / 2**20, "MB/sec" if version == "4.5" else "MiB/sec"
    print(LINE)
    print("                    RDMA_Write BW Test")
    print(f" Dual-port       : OFF\t\tDevice         : {options['-d']}")
    print(" Number of qps   : 1\t\tTransport type : IB")
    if is_client:
        print(" TX depth        : 128")
    print(f" Link type       : {'Ethernet' if '-x' in options else 'IB'}")
    if "-x" in options:
        print(f" GID index       : {options['-x']}")
    print(LINE)
    print(" local address: LID 0x01 QPN 0x0127 PSN 0x7d6c4d RKey 0x1840fd VAddr 0x007f8c5e6f0000")
    print(" remote address: LID 0x02 QPN 0x0127 PSN 0x12fd4b RKey 0x18406f VAddr 0x007fb0d3f00000")
    print(LINE)
    print(f" #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]")
    print(
        f" {options.get('-s', '65536'):<7}    {11640:<10}       {0:<7.2f}            {rate:<7.2f}\t\t   {0.023:<7.6f}"
    )
    print(LINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
