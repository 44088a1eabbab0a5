#!/usr/bin/env bash
# Assembles the demo's and the tests' images from Debian packages: DIR/busybox.tar and DIR/python.tar, as `docker save` writes them.
# Does nothing when they are there.
#
#   scripts/make-images.sh DIR [busybox|python]...       (default: both)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

[ $# -ge 1 ] || { echo "usage: $0 DIR [busybox|python]..." >&2; exit 2; }
directory=$1
shift
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(busybox python)
mkdir -p "$directory"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Reproducible: the same packages give the same layers.
pack() {
    tar --create --file "$2" --directory "$1" --sort=name --mtime=@0 --numeric-owner --exclude=./dev .
}

busybox_layer() {
    [ -e "$work/busybox.layer" ] && return
    local root=$work/busybox
    mkdir -p "$root"/{bin,etc,home,root,tmp,usr/bin,usr/sbin,sbin,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    install -m 0755 /bin/busybox "$root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\ndaemon:x:1:1::/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\ndaemon:x:1:\nusers:x:100:nobody\nnogroup:x:65534:\n' >"$root/etc/group"
    pack "$root" "$work/busybox.layer"
}

make_busybox() {
    busybox_layer
    "$here/assemble-image.py" "$directory/busybox.tar.new" busybox:latest "$work/busybox.layer" \
        --config '{"Cmd":["sh"],"Env":["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]}'
    mv "$directory/busybox.tar.new" "$directory/busybox.tar"
}

make_python() {
    busybox_layer
    # Extracted, not installed: no maintainer script runs, nothing of this machine comes along.
    mmdebstrap --quiet --variant=extract --include=python3-minimal,libpython3-stdlib,python3 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$work/python" >&2
    rm -rf "$work/python"/{dev,proc,sys,run,tmp,var/lib/apt,var/cache,etc/apt} "$work/python"/usr/share/{doc,man,locale}
    ln -sf python3 "$work/python/usr/bin/python"
    pack "$work/python" "$work/python.layer"
    "$here/assemble-image.py" "$directory/python.tar.new" python:latest "$work/busybox.layer" "$work/python.layer" \
        --config '{"Cmd":["python3"],"Env":["PATH=/usr/bin:/bin:/usr/sbin:/sbin"]}'
    mv "$directory/python.tar.new" "$directory/python.tar"
}

for image in "${wanted[@]}"; do
    [ -e "$directory/$image.tar" ] || "make_$image"
done
