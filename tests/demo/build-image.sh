#!/bin/sh
# Builds the demo's container image from the distribution's packages: a real
# redis-server and redis-cli with their libraries, and a static busybox.
#
#   OUTDIR/redis-tree/   the container's root
#   OUTDIR/redis.erofs   the same as a read-only disk
#
# Needs no root and installs nothing. Run again it does nothing, unless a
# package, this script or the builder has changed. ROOTFS_BUILDER names the
# rootfs-builder program.
set -eu
export LC_ALL=C # what apt-cache prints is read

packages='redis-server busybox-static'
# What packages depend on for their maintainer scripts and init scripts; no
# script is run here, and PID 1 of the container is redis itself.
unneeded='adduser debconf debconf-2.0 cdebconf init-system-helpers lsb-base passwd perl perl-base sysvinit-utils'
applets='sh ash awk cat chmod cp cut date dd df echo env expr false find free grep head hostname id ip kill
    ln ls mkdir mount mv nc nproc od pidof printf ps pwd rm sed seq sha256sum sleep sort stat stty sync tail tee
    test timeout touch tr true tty umount uname uniq wc which xargs yes'
here=$(dirname "$0")
fetch=$here/../../rootfs-builder/fetch-debian-packages.sh

say() {
    printf 'image: %s\n' "$*"
}

fail() {
    say "$*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: build-image.sh OUTDIR"
out=$1
builder=${ROOTFS_BUILDER:?the rootfs-builder program}

# All of $packages with what they need at run time, sorted: real packages, of
# alternatives the first, without recommendations. apt-cache lists what each
# package depends on, far and wide; awk walks from ours, past the unneeded.
closure() {
    # shellcheck disable=SC2086
    apt-cache depends --recurse --important $packages 2>/dev/null |
        awk -v wanted="$packages" -v unneeded="$unneeded" '
            /^[^ <]/ { package = $1; next }
            /^ *\|?(Pre)?Depends:/ {
                if (!alternative && $2 !~ /^</) needs[package] = needs[package] " " $2
                alternative = $1 ~ /^\|/
            }
            END {
                for (count = split(unneeded, list); count; count--) seen[list[count]] = 1
                end = split(wanted, queue)
                for (at = 1; at <= end; at++) {
                    if (seen[queue[at]]++) continue
                    print queue[at]
                    count = split(needs[queue[at]], list)
                    for (i = 1; i <= count; i++) queue[++end] = list[i]
                }
            }' | sort
}

unpack() {
    # With /usr merged, as the distribution has it: packages name both places.
    mkdir -p "$tree/usr/bin" "$tree/usr/sbin" "$tree/usr/lib" "$tree/usr/lib64"
    for directory in bin sbin lib lib64; do
        ln -s "usr/$directory" "$tree/$directory"
    done
    for archive in $archives; do
        dpkg-deb --fsys-tarfile "$archive" |
            tar -x -p --no-same-owner --keep-directory-symlink -C "$tree"
    done
}

prune() {
    for path in usr/share/doc usr/share/man usr/share/locale usr/share/lintian usr/share/bug \
        usr/share/initramfs-tools usr/share/bash-completion usr/lib/x86_64-linux-gnu/gconv usr/lib/systemd usr/share/gcc \
        etc/init.d etc/default etc/logrotate.d etc/redis lib/systemd var; do
        rm -rf "${tree:?}/$path"
    done
    # redis-server is a link to redis-check-rdb, which therefore stays.
    rm -f "$tree"/usr/bin/redis-benchmark "$tree"/usr/bin/redis-check-aof
}

furnish() {
    mkdir -p "$tree/etc" "$tree/data" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/run" "$tree/root" "$tree/var/lib"
    mkdir -p "$tree/tmp" && chmod 1777 "$tree/tmp"
    chmod 700 "$tree/root"
    # The image's files are all root's; who is not root writes to /data, too.
    chmod 1777 "$tree/data"
    cat >"$tree/etc/passwd" <<'PASSWD'
root:x:0:0:root:/root:/bin/sh
redis:x:100:100:redis:/data:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
PASSWD
    cat >"$tree/etc/group" <<'GROUP'
root:x:0:
redis:x:100:
nogroup:x:65534:
GROUP
    printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n' >"$tree/etc/hosts"
    printf 'hosts: files dns\n' >"$tree/etc/nsswitch.conf"
    # Files that are mounted over.
    : >"$tree/etc/hostname"
    : >"$tree/etc/machine-id"
    : >"$tree/etc/resolv.conf"
    for applet in $applets; do
        [ -e "$tree/bin/$applet" ] || [ -L "$tree/bin/$applet" ] || ln -s busybox "$tree/bin/$applet"
    done
}

# Every library is there: asked of the tree's own loader, without running redis.
verify() {
    libraries=$tree/usr/lib/x86_64-linux-gnu
    for program in redis-server redis-cli; do
        missing=$("$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" --list "$tree/usr/bin/$program" |
            awk -v tree="$tree/" '/not found/ || (/=>/ && index($3, tree) != 1) { print $1 }')
        # shellcheck disable=SC2086
        [ -z "$missing" ] || fail "$program lacks" $missing
    done
    "$tree/bin/busybox" true || fail "busybox does not run"
}

names=$(closure)
# shellcheck disable=SC2086
archives=$(sh "$fetch" $names)

stamp=$(
    {
        # shellcheck disable=SC2086
        sha256sum $archives | cut -d ' ' -f 1
        sha256sum <"$0"
        sha256sum <"$builder"
    } | sha256sum | cut -d ' ' -f 1
)
if [ -f "$out/redis.erofs" ] && [ -d "$out/redis-tree" ] && [ "$(cat "$out/redis.stamp" 2>/dev/null)" = "$stamp" ]; then
    say "$out/redis.erofs is up to date"
    exit 0
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out/redis.stamp"
part=$(mktemp -d "$out/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
tree=$part/tree
mkdir "$tree"
chmod 755 "$tree"
umask 022

# shellcheck disable=SC2086
say "unpacking" $names
unpack
prune
furnish
verify
"$builder" tree-to-erofs --tree "$tree" --output "$part/redis.erofs" >/dev/null
rm -rf "$out/redis-tree"
mv "$tree" "$out/redis-tree"
mv "$part/redis.erofs" "$out/redis.erofs"
printf '%s\n' "$stamp" >"$part/stamp"
mv "$part/stamp" "$out/redis.stamp"
say "$out/redis.erofs is ready ($(wc -c <"$out/redis.erofs") bytes)"
