#!/usr/bin/env python3
"""Checks sizes and wording of the tracked files: no file too long to be one idea, no unfinished marks, unsafe code in one crate."""

import re
import subprocess
import sys

LONGEST_FILE_LINES = 600
# Put together from halves, so that this file and other scans find no mark here.
UNFINISHED_WORDS = ("TO" "DO", "FIX" "ME", "XX" "X")
UNFINISHED_MACROS = ("to" "do", "unimple" "mented")
UNFINISHED = re.compile(rf"\b({'|'.join(UNFINISHED_WORDS)})\b|\b({'|'.join(UNFINISHED_MACROS)})!\(")
UNSAFE = re.compile(r"\bunsafe\s*(\{|fn|impl|extern)")
# Absolute paths of somebody's machine have no place in a repository that others clone.
MACHINE_PATH = re.compile(r"(^|[^.\w])/(home|Users|work)/[a-z]")


def main():
    names = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split()
    problems = []
    for name in names:
        if name.endswith(("Cargo.lock", ".png")):
            continue
        try:
            with open(name, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        if name.endswith((".rs", ".py", ".sh")) and len(lines) > LONGEST_FILE_LINES:
            problems.append(f"{name}: {len(lines)} lines, more than {LONGEST_FILE_LINES}: which two ideas are in it?")
        for number, line in enumerate(lines, 1):
            if UNFINISHED.search(line):
                problems.append(f"{name}:{number}: an unfinished mark")
            if name.endswith(".rs") and not name.startswith("crates/sys/") and UNSAFE.search(line.split("//")[0]):
                problems.append(f"{name}:{number}: unsafe code outside crates/sys")
            if MACHINE_PATH.search(line):
                problems.append(f"{name}:{number}: a path of somebody's machine")
    for problem in problems:
        print(f"  {problem}")
    print(f"  {len(names)} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
