#!/bin/sh
# Puts the distribution's cloud kernel into OUTDIR: unpacked, not installed.
#
#   OUTDIR/vmlinuz   the kernel
#   OUTDIR/config    its configuration
#   OUTDIR/modules/  its modules, laid out as /lib/modules/RELEASE, all of them
#                    and with modules.dep: the nested host of the tests loads
#                    what a host needs by modprobe
#   OUTDIR/release   its release
#
# Run again it does nothing, unless the distribution has a newer kernel.
# vmlinuz is put there last: where it is, the rest is.
set -eu
export LC_ALL=C # what apt-cache prints is read

meta=linux-image-cloud-amd64
here=$(dirname "$0")

say() {
    printf 'kernel: %s\n' "$*"
}

fail() {
    say "$*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: fetch-distro-kernel.sh OUTDIR"
out=$1

# The one package of a kernel that the metapackage depends on.
concrete_package() {
    apt-cache depends --important "$meta" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# An older kernel does, where a newer one cannot be had.
keep_if_there() {
    if [ -f "$out/vmlinuz" ] && [ -f "$out/release" ]; then
        say "$1; keeping $(cat "$out/release")"
        touch "$out/vmlinuz"
        exit 0
    fi
}

package=$(concrete_package)
if [ -z "$package" ]; then
    keep_if_there "the lists of packages are missing"
    fail "$meta is in no list of packages: run apt-get update as root (on Debian; elsewhere put a kernel into $out by hand)"
fi

if ! archive=$(sh "$here/../rootfs-builder/fetch-debian-packages.sh" "$package"); then
    keep_if_there "$package cannot be fetched"
    exit 1
fi
stamp=$(basename "$archive")
if [ -f "$out/vmlinuz" ] && [ -f "$out/modules/modules.dep" ] &&
    [ "$(cat "$out/package" 2>/dev/null)" = "$stamp" ]; then
    say "$(cat "$out/release") is in $out already"
    touch "$out/vmlinuz"
    exit 0
fi

mkdir -p "$out"
part=$(mktemp -d "$out/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM

say "unpacking $package (the guest's kernel; it is not installed)"
dpkg-deb -x "$archive" "$part"
release=${package#linux-image-}
for file in "boot/vmlinuz-$release" "boot/config-$release" "lib/modules/$release"; do
    [ -e "$part/$file" ] || fail "$package has no $file"
done
busybox depmod -b "$part" "$release" || fail "cannot list what the modules of $package depend on"
printf '%s\n' "$release" >"$part/release"
printf '%s\n' "$stamp" >"$part/package"

# From the first removal to the last move there is no vmlinuz.
rm -rf "$out/vmlinuz" "$out/package" "$out/modules"
mv "$part/lib/modules/$release" "$out/modules"
mv -f "$part/boot/config-$release" "$out/config"
mv -f "$part/release" "$out/release"
mv -f "$part/package" "$out/package"
touch "$part/boot/vmlinuz-$release"
mv "$part/boot/vmlinuz-$release" "$out/vmlinuz"
say "$release is in $out"
