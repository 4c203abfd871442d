"""What makes a node itself: host names and addresses, ssh keys, and the configuration of its sshd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

# What an administrator would set for every login of this site. No network, one thread a process, no GPU, and a Ray
# cluster that takes all comers: without this, Ray's head makes a token that its other nodes do not have.
SITE_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "RAY_AUTH_MODE": "disabled",
}

SSHD_CONFIG = """\
HostKey /etc/ssh/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
SetEnv {environment}
"""

NAME_SERVICES = """\
passwd: files
group: files
shadow: files
hosts: files
services: files
protocols: files
"""


def write_identities(folders: list[Path], names: list[str], addresses: list[str]) -> None:
    """Write each node's `etc` and `root_ssh` into its folder: it knows all nodes, and its root may log in to all."""
    home = folders[0] / "root_ssh"
    home.mkdir(mode=0o700)
    _make_key(home / "id_ed25519", "root@lab")
    shutil.copy(home / "id_ed25519.pub", home / "authorized_keys")
    for folder in folders:
        (folder / "etc/ssh").mkdir(parents=True)
        _make_key(folder / "etc/ssh/host_key", folder.name)
    known = "".join(
        f"{name},{address} {(folder / 'etc/ssh/host_key.pub').read_text()}"
        for folder, name, address in zip(folders, names, addresses, strict=True)
    )
    (home / "known_hosts").write_text(known)
    for folder in folders[1:]:
        shutil.copytree(home, folder / "root_ssh")

    # The node's own name is its own address, as a site's DNS would have it; Debian's 127.0.1.1 would send peers home.
    hosts = "127.0.0.1 localhost\n::1 localhost\n"
    hosts += "".join(f"{address} {name}\n" for name, address in zip(names, addresses, strict=True))
    environment = " ".join(f'"{name}={value}"' for name, value in SITE_ENVIRONMENT.items())
    for folder, name in zip(folders, names, strict=True):
        (folder / "etc/hosts").write_text(hosts)
        (folder / "etc/hostname").write_text(f"{name}\n")
        (folder / "etc/nsswitch.conf").write_text(NAME_SERVICES)
        (folder / "etc/resolv.conf").write_text("")
        (folder / "etc/ssh/sshd_config").write_text(SSHD_CONFIG.format(environment=environment))
        (folder / "etc/ssh/ssh_config").write_text("")


def _make_key(path: Path, comment: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)
