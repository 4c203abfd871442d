#!/bin/sh
# The first process of a node, alone in new namespaces: builds the node's own view of the machine, then becomes its init.
# Arguments: name, folder of the node's files on the host, folder that all nodes share, size of the node's disk, then
# the folders that must be visible although they lie on another disk or below /tmp.
set -eu
name=$1 files=$2 shared=$3 size=$4
shift 4

mount --make-rprivate /
hostname "$name"

# One small disk holds all that the node writes: its changes to the root, and its /tmp. In memory, and gone with the node.
disk=$files/disk
mkdir -p "$disk"
mount -t tmpfs -o "size=$size,mode=755" disk "$disk"
mkdir "$disk/root" "$disk/upper" "$disk/work" "$disk/tmp"
chmod 1777 "$disk/tmp"
root=$disk/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mount --bind "$disk/tmp" "$root/tmp"
mkdir -p "$root/run/sshd" "$root/run/lock" "$root/$shared"
mount --bind "$shared" "$root/$shared"

number=0
for path in "$@"; do
  number=$((number + 1))
  mkdir -p "$root$path" "$disk/upper$number" "$disk/work$number"
  mount -t overlay overlay -o "lowerdir=$path,upperdir=$disk/upper$number,workdir=$disk/work$number" "$root$path"
done

# Its own hosts, keys and configuration, and none of the user's keys and shell start-up files.
rm -rf "$root/root/.ssh" "$root/root/.bashrc" "$root/root/.bash_profile" "$root/root/.bash_login" "$root/root/.profile"
cp -a --remove-destination "$files/etc/." "$root/etc/"
cp -a "$files/root_ssh" "$root/root/.ssh"
sed -i 's/^root:!/root:*/' "$root/etc/shadow" # sshd refuses a locked account

cd "$root"
pivot_root . mnt
umount -l /mnt
cd /
/usr/sbin/sshd -E /var/log/sshd.log
echo ready
exec tini -- sleep infinity </dev/null >/dev/null 2>&1
