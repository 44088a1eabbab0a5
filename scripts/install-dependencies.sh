#!/usr/bin/env bash
# Installs, through apt, what atoll needs. Does nothing, in milliseconds, when all of it is there.
#
#   scripts/install-dependencies.sh [build|run|demo|test]        (default: build)
#
# build  what compiles atoll              run   build + what a machine that runs sandboxes needs
# demo   run + a registry and images      test  demo + what the test suites and comparisons need
set -euo pipefail

# Class `gvisor` needs a runsc from this date on: older ones cannot checkpoint network servers.
RUNSC_OLDEST_USABLE=20240101
# SOURCE: rust-version in the workspace's Cargo.toml.
RUST_OLDEST_USABLE=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")

PACKAGES_BUILD=(gcc libc6-dev make pkg-config ca-certificates)
PACKAGES_RUN=(e2fsprogs iproute2 nftables mount util-linux)
# apache2-utils has htpasswd, for the registry with a password.
PACKAGES_DEMO=(busybox-static docker-registry mmdebstrap python3 skopeo zstd)
# fish and zsh load the completions that are made for them; disks are tested on btrfs and xfs too.
PACKAGES_TEST=(apache2-utils btrfs-progs containerd fish qemu-system-x86 runc umoci xfsprogs zsh)

say() { printf 'dependencies: %s\n' "$*" >&2; }
die() {
    printf 'dependencies: error: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "'$*' needs root: run this script as root or install sudo"
    fi
}

apt_lists_are_fresh=no
refresh_apt_lists() {
    if [ "$apt_lists_are_fresh" = no ]; then
        say "refreshing the package lists"
        as_root apt-get update -q -o Acquire::Retries=3 >&2
        apt_lists_are_fresh=yes
    fi
}

apt_get_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" >&2
}

# A machine that has parts of a package's family from backports needs the rest from there too.
apt_install() {
    refresh_apt_lists
    say "installing $*"
    apt_get_install "$@" && return
    say "trying again with this release's backports"
    apt_get_install -t "$(release_codename)-backports" "$@"
}

release_codename() {
    sed -n 's/^VERSION_CODENAME=//p' /etc/os-release
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

require_rust() {
    command -v cargo >/dev/null ||
        die "no Rust toolchain: install Rust $RUST_OLDEST_USABLE or newer with rustup, then run this again"
    local found
    found=$(rustc --version | sed 's/^rustc \([0-9.]*\).*/\1/')
    [ "$(printf '%s\n%s\n' "$RUST_OLDEST_USABLE" "$found" | sort -V | head -n1)" = "$RUST_OLDEST_USABLE" ] ||
        die "rustc $found is too old: run 'rustup update stable' to get $RUST_OLDEST_USABLE or newer"
}

# The date in `runsc --version` (release-20240729.0 or 0.0~20240729.0); 0 when there is none.
runsc_date() {
    local date
    date=$(runsc --version 2>/dev/null | grep -oE '20[0-9]{6}' | head -n1 || true)
    echo "${date:-0}"
}

# The date of the newest runsc that apt offers, and the version string to ask apt for.
runsc_offered_by_apt() {
    apt-cache madison runsc 2>/dev/null | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' |
        sed -nE 's/^(.*(20[0-9]{6}).*)$/\2 \1/p' | sort -rn | head -n1
}

# Adds the backports suite of the mirror this machine already uses, signed by the key it already trusts.
add_backports() {
    local codename mirror keyring
    codename=$(release_codename)
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        awk -v codename="$codename" '$2 == codename && $3 == "main" { print $1; exit }')
    [ -n "$mirror" ] || die "no apt source offers '$codename main': cannot tell which mirror to ask for backports"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keyring" ] || die "$keyring is missing: install the package debian-archive-keyring"
    say "adding the suite $codename-backports of this machine's mirror"
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\nSigned-By: %s\n' \
        "$mirror" "$codename" "$keyring" |
        as_root tee /etc/apt/sources.list.d/atoll-backports.sources >/dev/null
    apt_lists_are_fresh=no
    refresh_apt_lists
}

install_runsc() {
    [ "$(runsc_date)" -ge "$RUNSC_OLDEST_USABLE" ] && return
    refresh_apt_lists
    local offered
    offered=$(runsc_offered_by_apt)
    if [ "${offered%% *}" -lt "$RUNSC_OLDEST_USABLE" ] 2>/dev/null || [ -z "$offered" ]; then
        if ! grep -q '^ID=debian' /etc/os-release; then
            say "this distribution offers no usable runsc: class gvisor needs runsc $RUNSC_OLDEST_USABLE or newer in PATH"
            return
        fi
        add_backports
        offered=$(runsc_offered_by_apt)
    fi
    [ -n "$offered" ] || die "apt offers no runsc, not even from backports: class gvisor cannot be used"
    apt_install "runsc=${offered#* }"
    [ "$(runsc_date)" -ge "$RUNSC_OLDEST_USABLE" ] ||
        die "runsc of $(runsc_date) is too old for class gvisor ($RUNSC_OLDEST_USABLE or newer is needed)"
}

# Packages that start a service when installed must not do so here: the tests start their own.
apt_install_without_starting_services() {
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        apt_install "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
    local status=0
    apt_install "$@" || status=$?
    as_root rm -f "$policy"
    return "$status"
}

main() {
    local purpose=${1:-build}
    local wanted=("${PACKAGES_BUILD[@]}")
    case "$purpose" in
    build) ;;
    run) wanted+=("${PACKAGES_RUN[@]}") ;;
    demo) wanted+=("${PACKAGES_RUN[@]}" "${PACKAGES_DEMO[@]}") ;;
    test) wanted+=("${PACKAGES_RUN[@]}" "${PACKAGES_DEMO[@]}" "${PACKAGES_TEST[@]}") ;;
    *) die "usage: $0 [build|run|demo|test]" ;;
    esac
    command -v apt-get >/dev/null || die "no apt here: install by other means: ${wanted[*]}"

    local missing=() package
    for package in "${wanted[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] || apt_install_without_starting_services "${missing[@]}"
    [ "$purpose" = build ] || install_runsc
    require_rust
}

main "$@"
