#!/bin/sh
# Has the kernel's own configuration settle on what our fragments ask for, for
# each machine, and checks what came of it. Nothing is compiled but the program
# that does it, so that no machine needs a compiler of another. Needs no root.
#
# KERNEL_CONFIG names the kernel-config program.
set -eu

here=$(dirname "$0")
. "$here/source.sh"

program=${KERNEL_CONFIG:?the kernel-config program}
need_tools
find_source
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
unpack_source

status=0
for machine in x86_64 aarch64; do
    case $machine in
    aarch64) architecture=arm64 ;;
    *) architecture=$machine ;;
    esac
    "$program" compose --architecture "$machine" | configure
    if "$program" settled --architecture "$machine" "$config" &&
        "$program" check "$config"; then
        say "$machine: the fragments are settled on"
    else
        say "$machine: the fragments are not settled on" >&2
        status=1
    fi
done
exit "$status"
