#!/usr/bin/env python3
"""Checks that crates depend only in the direction that ARCHITECTURE.md draws, and that every licence is one we can ship."""

import json
import re
import subprocess
import sys

# What each crate may use of the workspace. ARCHITECTURE.md has the reasons.
ALLOWED = {
    "atoll-model": set(),
    "atoll-sys": set(),
    "atoll-wire": set(),
    "atoll-image": {"atoll-model"},
    "atoll-network": {"atoll-sys"},
    "atoll-keeper": {"atoll-sys", "atoll-wire"},
    "atoll-guest": {"atoll-wire", "atoll-sys"},
    "atoll-shim": {"atoll-model", "atoll-wire", "atoll-sys"},
    "atoll-programs": set(),
    "atoll-runtime": {"atoll-model", "atoll-wire", "atoll-sys", "atoll-network", "atoll-keeper"},
    "atoll-server": {"atoll-model", "atoll-wire", "atoll-sys", "atoll-runtime"},
    "atoll": {
        "atoll-model", "atoll-wire", "atoll-sys", "atoll-image", "atoll-keeper", "atoll-programs", "atoll-runtime",
        "atoll-server",
    },
    "atoll-fuzz": {"atoll-model", "atoll-wire", "atoll-image", "atoll-keeper"},
}

# Outside crates that the pure core may use: no I/O, no clock, no serialisation.
MODEL_MAY_USE = {"thiserror"}

LICENCES = {
    "MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib", "Unicode-3.0", "Unlicense", "BSL-1.0",
    "CDLA-Permissive-2.0", "Apache-2.0 WITH LLVM-exception",
}


def main():
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True
        ).stdout
    )
    members = set(metadata["workspace_members"])
    problems = []
    for package in metadata["packages"]:
        if package["id"] in members:
            problems += direction_problems(package)
        if not licence_is_acceptable(package.get("license") or ""):
            problems.append(f"{package['name']} {package['version']}: licence {package.get('license')!r} is not on the list")
    for problem in problems:
        print(f"  {problem}")
    print(f"  {len(members)} crates of ours, {len(metadata['packages']) - len(members)} others")
    return 1 if problems else 0


def direction_problems(package):
    name = package["name"]
    if name not in ALLOWED:
        yield f"{name}: not in scripts/check-dependencies.py; say there and in ARCHITECTURE.md what it may use"
        return
    for dependency in package["dependencies"]:
        if dependency.get("kind") == "dev":
            continue
        target = dependency["name"]
        if target.startswith("atoll") and target not in ALLOWED[name]:
            yield f"{name} must not depend on {target}"
        if name == "atoll-model" and not target.startswith("atoll") and target not in MODEL_MAY_USE:
            yield f"{name} is the pure core and must not depend on {target}"


def licence_is_acceptable(expression):
    """Any one of the alternatives, all of the conjuncts. SOURCE: SPDX licence expressions; `/` is the old spelling of OR."""
    expression = expression.replace("/", " OR ").replace("(", " ").replace(")", " ")
    conjuncts = re.split(r"\s+AND\s+", expression.strip())
    return all(
        any(alternative.strip() in LICENCES for alternative in re.split(r"\s+OR\s+", conjunct)) for conjunct in conjuncts
    )


if __name__ == "__main__":
    sys.exit(main())
