#!/bin/sh
# Installs what the demo and the tests run, if it is not there yet; with the
# word `bench` also what the figures are held against, with `kernel` what a
# kernel is built with.
set -eu

# Where file systems' tools are, out of users' way.
PATH=$PATH:/usr/sbin:/sbin

missing=
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

need qemu-system-x86_64 qemu-system-x86
need mkfs.erofs erofs-utils
need mke2fs e2fsprogs
# What hash trees are held against.
need veritysetup cryptsetup-bin
# What signed identities are held against.
need openssl openssl
need busybox busybox-static
need dpkg-deb dpkg
need cc gcc
# Recommended by gcc, and so not installed with it.
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"

# What the agent's containers are measured against; only `make bench` runs it.
[ "${1:-}" != bench ] || need crun crun

if [ "${1:-}" = kernel ]; then
    need make make
    need bc bc
    need flex flex
    need bison bison
    need xz xz-utils
    need cpio cpio
    need zstd zstd
    # objtool, a part of the build, reads ELF files by it.
    [ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
fi

# The lists of packages: the guest's kernel and the demo's service are
# unpacked from them without being installed.
lists=
if ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
    lists=needed
fi

[ -n "$missing$lists" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "tools: missing, to be installed as root: apt-get update && apt-get install$missing" >&2
    exit 1
fi
echo 'tools: updating the lists of packages'
apt-get -qq update
if [ -n "$missing" ]; then
    why='the emulator, file system and archive tools of the demo and the tests'
    [ "${1:-}" != kernel ] || why="$why; and what a kernel is built with"
    case $missing in *' crun'*) why="$why; crun: what the agent's containers are measured against" ;; esac
    echo "tools: installing$missing ($why)"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing >/dev/null
fi
