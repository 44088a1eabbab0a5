#!/usr/bin/env bash
# Makes a small Debian machine with systemd and pure cgroup v2, for the tests that need another kernel than the host's:
# DIR/{root.ext4,vmlinuz,initrd}. Does nothing when they are there and made by this version of the script.
#
#   scripts/debian-guest/make-image.sh DIR
set -euo pipefail
directory=${1:?usage: $0 DIR}
stamp=$(sha256sum "$0" | cut -c1-16)
mkdir -p "$directory"
[ "$(cat "$directory/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
rm -f "$directory/stamp"

codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mmdebstrap --quiet --variant=minbase \
    --include=systemd,systemd-sysv,dbus,linux-image-cloud-amd64,e2fsprogs,iproute2,nftables,busybox-static,procps,util-linux,btrfs-progs,xfsprogs \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$codename" "$root" >&2

echo guest >"$root/etc/hostname"
printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /suite ext4 defaults,ro 0 0\n' >"$root/etc/fstab"
mkdir -p "$root/suite"
cat >"$root/etc/systemd/system/suite.service" <<'UNIT'
[Unit]
Description=Run the test suite of the second disk, then switch off
RequiresMountsFor=/suite
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/suite/run.sh
StandardOutput=file:/dev/ttyS1
StandardError=inherit
ExecStopPost=/usr/bin/systemctl poweroff --force
TimeoutStartSec=1500
KillMode=process

[Install]
WantedBy=multi-user.target
UNIT
ln -s ../suite.service "$root/etc/systemd/system/multi-user.target.wants/suite.service"
# The first console is the kernel's, the second the suite's: a login prompt has no place on either.
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
for needless in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$needless"
done

cp "$root"/boot/vmlinuz-* "$directory/vmlinuz"
cp "$root"/boot/initrd.img-* "$directory/initrd"
rm -rf "$root"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
rm -f "$directory/root.ext4"
truncate -s 3G "$directory/root.ext4"
mkfs.ext4 -q -O ^has_journal -L root -d "$root" "$directory/root.ext4"
echo "$stamp" >"$directory/stamp"
