#!/bin/sh
# Measures each VMM, in a nested host of its own with two processors.
#
#   bench-vmms.sh LAB KERNEL TOOLS OUTPUT BENCH
#
# LAB_OPTIONS is for the lab. A nested host that stands still, or whose kernel
# panics, made a mistake of its emulator's: there is another, of three.
set -euf

lab=$1
kernel=$2
tools=$3
output=$4
bench=$5

outcome=0
for vmm in qemu cloud-hypervisor firecracker; do
    for turn in first second third; do
        status=0
        # shellcheck disable=SC2086
        "$lab" run --quiet --kernel "$kernel" --tools "$tools/bin" --deadline 3600 \
            --share "$output" ${LAB_OPTIONS:-} -- "$bench" vmms "$vmm" || status=$?
        case $status in 124 | 125) ;; *) break ;; esac
        printf 'lab: the %s of three nested hosts for %s is no more\n' "$turn" "$vmm" >&2
    done
    [ "$status" -eq 0 ] || outcome=$status
done
exit "$outcome"
