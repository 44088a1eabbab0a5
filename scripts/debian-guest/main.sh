#!/bin/sh
# Runs inside the Debian guest: every test program of the suite, then the check of the systemd unit.
status=0
# The disks of sandboxes are tested on file systems with project quotas, which this kernel has and the host's may not have.
modprobe -a overlay loop xfs quota_v2
mkdir -p /var/tmp
export TMPDIR=/var/tmp ATOLL_TEST_SLOW_MACHINE=1
export ATOLL_TEST_DRIVER=/suite/container_driver ATOLL_TEST_PROBE=/suite/container-probe ATOLL_TEST_BUSYBOX=/suite/busybox
for program in /suite/tests/*; do
    echo "Running $(basename "$program")"
    "$program" --show-output --test-threads=2 $(cat "/suite/filters/$(basename "$program")" 2>/dev/null) || status=1
done
echo "Running systemd.sh"
/suite/systemd.sh || status=1
exit $status
