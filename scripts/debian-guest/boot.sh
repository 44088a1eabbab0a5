#!/usr/bin/env bash
# Boots the machine that make-image.sh made, under software emulation, runs DIRECTORY/run.sh in it and prints what that printed.
# Ends with that program's exit status. The machine has no network and a throw-away disk: nothing of it stays.
#
#   scripts/debian-guest/boot.sh IMAGE_DIRECTORY SUITE_DIRECTORY [SECONDS]
set -euo pipefail
image=${1:?usage: $0 IMAGE_DIRECTORY SUITE_DIRECTORY [SECONDS]}
suite=${2:?usage: $0 IMAGE_DIRECTORY SUITE_DIRECTORY [SECONDS]}
seconds=${3:-900}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/wrapper" <<'RUN'
#!/bin/sh
/suite/main.sh
echo "SUITE EXIT $?"
RUN
cp -r "$suite" "$work/suite"
mv "$work/suite/run.sh" "$work/suite/main.sh"
mv "$work/wrapper" "$work/suite/run.sh"
chmod 0755 "$work"/suite/*.sh
megabytes=$(($(du -sm "$work/suite" | cut -f1) * 11 / 10 + 64))
truncate -s "${megabytes}M" "$work/suite.ext4"
mkfs.ext4 -q -O ^has_journal -d "$work/suite" "$work/suite.ext4"
rm -rf "$work/suite"

: >"$work/suite.log"
timeout --kill-after=10s "$seconds" qemu-system-x86_64 \
    -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -display none -no-reboot -nic none \
    -kernel "$image/vmlinuz" -initrd "$image/initrd" \
    -append 'root=/dev/vda rw console=ttyS0 quiet systemd.unified_cgroup_hierarchy=1 net.ifnames=0' \
    -drive "file=$image/root.ext4,format=raw,if=virtio,snapshot=on" \
    -drive "file=$work/suite.ext4,format=raw,if=virtio,readonly=on" \
    -serial "file:$work/console.log" -serial "file:$work/suite.log" || true

tr -d '\r' <"$work/suite.log"
status=$(tr -d '\r' <"$work/suite.log" | sed -n 's/^SUITE EXIT \([0-9]*\)$/\1/p' | tail -n1)
if [ -z "$status" ]; then
    echo "the machine did not end its suite within $seconds s; the end of its console:" >&2
    tail -n 40 "$work/console.log" >&2
    exit 1
fi
exit "$status"
