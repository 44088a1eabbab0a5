#!/bin/sh
# Runs inside the Debian guest, beside the atoll binary and busybox.layer: `systemctl restart atoll` must leave every sandbox alive, as the same
# process, reachable through exec and logs; `systemctl stop` too. Prints one line a check, in the form of Rust's test runner.
set -u
here=$(dirname "$0")
passed=0
failed=0
check() {
    name=$1
    shift
    if "$@"; then
        echo "test container::systemd::$name ... ok"
        passed=$((passed + 1))
    else
        echo "test container::systemd::$name ... FAILED"
        failed=$((failed + 1))
    fi
}
export ATOLL_DATA_DIR=/var/lib/atoll

# `systemctl start` returns when the program is exec'ed: the first answer tells when it serves.
serves() {
    for _ in $(seq 120); do
        atoll get sandboxes >/dev/null 2>&1 && return 0
        sleep 0.5
    done
    journalctl -u atoll --no-pager | tail -n 40
    return 1
}
# When the guest started, in clock ticks: another process would have another.
first_process() { atoll exec keeper -- sh -c 'cut -d" " -f22 /proc/1/stat'; }

install -m 0755 "$here/atoll" /usr/bin/atoll
install -m 0644 "$here/atoll.service" /etc/systemd/system/atoll.service
systemctl daemon-reload
check starts systemctl start atoll
check serves serves
check imports atoll image import "$here/busybox.layer" busybox:latest
check runs test "$(echo hello | atoll run --class container -i busybox:latest -- cat)" = hello
cat >/tmp/keeper.yaml <<'MANIFEST'
kind: Sandbox
id: keeper
spec:
  class: container
  containers:
    - name: main
      image: busybox:latest
      args: [sh, -c, "echo begun; exec sleep 100000"]
MANIFEST
check creates atoll create -f /tmp/keeper.yaml
check becomes_running atoll wait sandbox/keeper --for running --timeout 120s
before=$(first_process)
check has_a_first_process test -n "$before"
# The wall clock jumps, there and back: times to live are counted by a clock that does not. Only here: on a machine of its own.
for timed in "late 3600" "soon 20"; do
    cat <<MANIFEST | atoll create -f - >/dev/null
kind: Sandbox
id: ${timed% *}
spec:
  class: container
  ttl_seconds: ${timed#* }
  containers:
    - name: main
      image: busybox:latest
      args: [sleep, "5000"]
MANIFEST
done
check becomes_running_with_a_deadline atoll wait sandbox/late --for running --timeout 120s
check clock_goes_forth sh -c 'date -s "+2 hours" >/dev/null'
check a_clock_set_forth_ends_nobody atoll exec late -- true
check clock_goes_back sh -c 'date -s "-4 hours" >/dev/null'
check a_clock_set_back_keeps_nobody atoll wait sandbox/soon --for deleted --timeout 120s
check others_go_on atoll exec late -- true
check clock_is_right_again sh -c 'date -s "+2 hours" >/dev/null'
check deletes_one_with_a_deadline atoll delete sandbox/late
check restarts systemctl restart atoll
check serves_again serves
check is_the_same_process test "$(first_process)" = "$before"
check keeps_its_log sh -c 'atoll logs keeper | grep -q begun'
check stops systemctl stop atoll
check outlives_the_service sh -c 'pgrep -f "^sleep 100000" >/dev/null'
check lies_outside_the_service sh -c '! grep -q system.slice/atoll.service /proc/$(pgrep -o -f "^sleep 100000")/cgroup'
check nothing_left_in_the_service sh -c '! test -s /sys/fs/cgroup/system.slice/atoll.service/cgroup.procs'
check starts_once_more systemctl start atoll
check serves_once_more serves
check still_the_same_process test "$(first_process)" = "$before"
check deletes atoll delete sandbox/keeper
check ends_it sh -c '! pgrep -f "^sleep 100000" >/dev/null'
systemctl stop atoll
echo "test result: $([ $failed = 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored"
[ "$failed" = 0 ]
