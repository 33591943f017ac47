#!/bin/sh
# Builds the guest's own kernel without each of our fragments in turn, one after
# the other in one tree, into OUTDIR/NAME/bzImage; `whole` is the one with all of
# them. A fragment without which nothing can be built is told, and has none.
#
# KERNEL_CONFIG names the kernel-config program; JOBS is for make -j. FRAGMENTS
# names those to leave out, else it is all of them.
set -eu

here=$(dirname "$0")
. "$here/source.sh"

[ $# -eq 1 ] || fail "usage: measure-fragments.sh OUTDIR"
out=$1
program=${KERNEL_CONFIG:?the kernel-config program}
machine=$(uname -m)
[ "$machine" = x86_64 ] || fail "builds on x86_64 only, this is $machine"
architecture=x86_64
need_tools
find_source
fragments=${FRAGMENTS:-$("$program" fragments --architecture "$machine")}

mkdir -p "$out"
out=$(cd "$out" && pwd)
part=$(mktemp -d "$out/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
unpack_source

# NAME: what was configured, into OUTDIR/NAME.
one() {
    rm -rf "${out:?}/$1"
    if ! build bzImage >"$part/log" 2>&1; then
        say "$1: cannot be built: $(grep -m 1 -i error "$part/log" || tail -n 1 "$part/log")"
        return
    fi
    mkdir "$out/$1"
    cp "$part/source/arch/x86/boot/bzImage" "$out/$1/bzImage"
    cp "$config" "$out/$1/config"
    say "$1: bzImage $(wc -c <"$out/$1/bzImage") bytes"
}

"$program" compose --architecture "$machine" | configure
say "building the whole (minutes), then without each of:" $fragments
one whole
[ -f "$out/whole/bzImage" ] || fail "the whole cannot be built"
for fragment in $fragments; do
    "$program" compose --architecture "$machine" --without "$fragment" | configure
    one "$fragment"
done
