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
export LC_ALL=C # what apt-cache prints is read

here=$(dirname "$0")

say() {
    printf 'kernel: %s\n' "$*"
}

fail() {
    say "$*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: build-kernel.sh OUTDIR"
out=$1
program=${KERNEL_CONFIG:?the kernel-config program}
jobs=${JOBS:-$(nproc)}
machine=$(uname -m)
[ "$machine" = x86_64 ] || fail "builds on x86_64 only, this is $machine"

missing=
for tool in make gcc ld bc flex bison xz cpio zstd; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
# objtool, a part of the build, reads ELF files by it.
[ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
[ -z "$missing" ] || fail "missing:$missing (as root: apt-get install make gcc binutils bc flex bison xz-utils cpio zstd libelf-dev)"

package=$(apt-cache depends --important linux-source 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-source-[0-9][^ ]*\)$/\1/p' | head -n 1)
[ -n "$package" ] || fail "linux-source is in no list of packages: run apt-get update as root (on Debian)"
archive=$(sh "$here/../rootfs-builder/fetch-debian-packages.sh" "$package")

asked=$("$program" compose --architecture "$machine")
stamp=$(
    {
        basename "$archive"
        printf '%s\n' "$asked"
        sha256sum <"$0"
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

say "unpacking $package"
dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$part" --wildcards './usr/src/linux-source-*.tar.xz'
mkdir "$part/source"
xz -dc "$part"/usr/src/linux-source-*.tar.xz | tar -x -C "$part/source" --strip-components=1
rm -rf "$part/usr"
printf '%s\n' "$asked" >"$part/asked"

build() {
    make -s -C "$part/source" -j "$jobs" ARCH=x86_64 \
        KBUILD_BUILD_USER=tardigrade KBUILD_BUILD_HOST=tardigrade \
        KBUILD_BUILD_TIMESTAMP=@"${SOURCE_DATE_EPOCH:-0}" KBUILD_BUILD_VERSION=1 "$@"
}

KCONFIG_ALLCONFIG="$part/asked" build allnoconfig >/dev/null
config=$part/source/.config
"$program" settled --architecture "$machine" "$config" || fail "the build does not settle on what was asked for"
"$program" check "$config" || fail "the guest does not run on such a kernel"
if [ -n "${CONFIG_ONLY:-}" ]; then
    cp "$config" "$out/config"
    say "the configuration is in $out"
    exit 0
fi

say "building (minutes), make -j $jobs"
build vmlinux bzImage
strip --strip-all -o "$part/vmlinux" "$part/source/vmlinux"
rm -f "$out/stamp"
mv "$part/vmlinux" "$out/vmlinux"
cp "$part/source/arch/x86/boot/bzImage" "$out/bzImage"
cp "$config" "$out/config"
build kernelrelease >"$out/release"
printf '%s\n' "$stamp" >"$out/stamp"
say "$(cat "$out/release") is in $out: bzImage $(wc -c <"$out/bzImage") bytes, vmlinux $(wc -c <"$out/vmlinux") bytes"
