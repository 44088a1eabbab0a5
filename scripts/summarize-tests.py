#!/usr/bin/env python3
"""Counts what the logs of a test run say was run, failed and skipped, per class. A skipped required class is a failure.

A test that cannot run here prints one line: `SKIPPED: <test>: <why>`. What a class declares that it cannot do anywhere (the conformance
suite's skips.rs) has a reason that begins with `declared: `.
"""

import os
import pathlib
import re
import sys

RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")
ENDED = re.compile(r"^test (\S+)( - should panic)? \.\.\. (ok|FAILED|ignored)")
SKIPPED = re.compile(r"SKIPPED: (.+?): (.+)$")
# How a test's name, or the line with which it skips itself, tells its class.
CLASSES = ("container", "gvisor", "sim")
DECLARED = "declared: "
FILE_SYSTEM_CASE = re.compile(r"conformance/\w+/disks/")


def main(log_dir):
    passed = failed = ignored = 0
    per_class = {name: {"run": 0, "skipped": 0} for name in CLASSES}
    binary = ""
    skips = []
    for path in sorted(pathlib.Path(log_dir).glob("*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := re.search(r"Running (?:unittests )?(\S+)", line):
                binary = found[1]
            if found := RESULT.match(line):
                passed += int(found[1])
                failed += int(found[2])
                ignored += int(found[3])
            if (found := ENDED.match(line)) and found[3] != "ignored":
                for name in classes_of(f"{binary} {found[1]}"):
                    per_class[name]["run"] += 1
            if found := SKIPPED.search(line):
                skips.append((found[1], found[2]))
                for name in classes_of(found[1]):
                    per_class[name]["skipped"] += 1
    for test, why in skips:
        print(f"skipped  {test}: {why}")
    for name, counts in per_class.items():
        print(f"class {name:<10} {counts['run']:>4} tests named after it, {counts['skipped']} skipped")
    print(f"tests: {passed} passed, {failed} failed, {ignored} ignored, {len(skips)} skipped with a reason")
    required = os.environ.get("ATOLL_REQUIRE_CLASSES", "").split()
    missing = [name for name in required if per_class[name]["run"] == 0 or undeclared_skips(name, skips)]
    if missing:
        print(f"these classes had to be tested here and were not, or not wholly: {', '.join(missing)}")
        return 1
    return 1 if failed or ignored or passed == 0 else 0


def undeclared_skips(name, skips):
    """What kept a class from being tested wholly on this machine: a missing runsc or busybox, say, but nothing that it never does."""
    return [test for test, why in skips if name in classes_of(test) and not excused(test, why)]


def excused(test, why):
    if not test.startswith("conformance/"):
        return False
    # The kernel decides which file systems can be tried; that the class works at all is told by its other cases.
    return why.startswith(DECLARED) or FILE_SYSTEM_CASE.match(test) is not None


def classes_of(text):
    return [name for name in CLASSES if re.search(rf"(^|[^a-z]){name}([^a-z]|$)", text)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
