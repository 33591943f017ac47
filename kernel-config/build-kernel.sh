#!/bin/sh
# Builds the guest's own kernel into OUTDIR, from the distribution's
# linux-source package and our fragments. Needs no root and installs nothing.
#
#   OUTDIR/vmlinux   the ELF image, without symbols
#   OUTDIR/bzImage   the packed one (on x86-64)
#   OUTDIR/config    what the kernel's build settled on
#   OUTDIR/release   its release
#
# KERNEL_CONFIG names the kernel-config program; JOBS is for make -j. Run again
# it does nothing, unless source package, fragments or this script have changed.
# The same inputs give the same bytes: builder, host and time are fixed.
set -eu

here=$(dirname "$0")
. "$here/source.sh"

[ $# -eq 1 ] || fail "usage: build-kernel.sh OUTDIR"
out=$1
program=${KERNEL_CONFIG:?the kernel-config program}
machine=$(uname -m)
[ "$machine" = x86_64 ] || fail "builds on x86_64 only, this is $machine"
architecture=x86_64
need_tools
find_source

asked=$("$program" compose --architecture "$machine")
stamp=$(
    {
        basename "$archive"
        printf '%s\n' "$asked"
        sha256sum <"$0"
        sha256sum <"$here/source.sh"
        gcc --version | head -n 1
    } | sha256sum | cut -d ' ' -f 1
)
if [ -f "$out/vmlinux" ] && [ -f "$out/bzImage" ] && [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    say "$(cat "$out/release") is in $out already"
    exit 0
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
part=$(mktemp -d "$out/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM

unpack_source
printf '%s\n' "$asked" | configure
"$program" settled --architecture "$machine" "$config" || fail "the build does not settle on what was asked for"
"$program" check "$config" || fail "the guest does not run on such a kernel"

say "building (minutes), make -j ${JOBS:-$(nproc)}"
build vmlinux bzImage
strip --strip-all -o "$part/vmlinux" "$part/source/vmlinux"
rm -f "$out/stamp"
mv "$part/vmlinux" "$out/vmlinux"
cp "$part/source/arch/x86/boot/bzImage" "$out/bzImage"
cp "$config" "$out/config"
build kernelrelease >"$out/release"
printf '%s\n' "$stamp" >"$out/stamp"
say "$(cat "$out/release") is in $out: bzImage $(wc -c <"$out/bzImage") bytes, vmlinux $(wc -c <"$out/vmlinux") bytes"
