#!/bin/sh
# Install what the lab is made of on Debian or Ubuntu, unless it is there; as root. No daemon is started on this machine.
set -eu

packages="openssh-server munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins iproute2 iptables openmpi-bin
  iputils-ping tini shellcheck"

missing=
for package in $packages; do
  case $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) in
    installed) ;;
    *) missing="$missing $package" ;;
  esac
done
[ -n "$missing" ] || exit 0

# Debian asks this file whether a package may start its daemons.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2 -o Acquire::Retries=3
# shellcheck disable=SC2086 # a list of words
apt-get install --quiet=2 -o Acquire::Retries=3 --yes --no-install-recommends $missing >/dev/null
