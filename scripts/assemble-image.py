#!/usr/bin/env python3
"""Assembles a `docker save` archive from root file system tars: enough to push a real image without a container engine.

usage: assemble-image.py OUTPUT.tar REFERENCE LAYER.tar... [--config JSON]

LAYER.tar are applied in the order given. JSON is the image configuration's `config` object (Cmd, Env, User, ...).
Same input, same bytes: no clock is read.
"""

import argparse
import hashlib
import io
import json
import platform
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("reference")
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--config", default="{}")
    arguments = parser.parse_args()

    layers = [read(path) for path in arguments.layers]
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    config = json.dumps(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": json.loads(arguments.config),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "assemble-image"} for _ in layers],
        },
        sort_keys=True,
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [
        {
            "Config": config_name,
            "RepoTags": [arguments.reference],
            "Layers": [f"{digest}/layer.tar" for digest in digests],
        }
    ]
    with tarfile.open(arguments.output, "w") as archive:
        for digest, layer in zip(digests, layers):
            add(archive, f"{digest}/layer.tar", layer)
        add(archive, config_name, config)
        add(archive, "manifest.json", json.dumps(manifest).encode())


def read(path):
    with open(path, "rb") as file:
        return file.read()


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
