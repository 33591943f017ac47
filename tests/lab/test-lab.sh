#!/bin/sh
# Runs the tests of the nested host, in it: the binaries called lab_*.
#
#   test-lab.sh LAB KERNEL TOOLS OUTPUT
#
# They are built and listed here, and run there by the same test runner. A test
# lies in a module named after the VMM it needs. Where a VMM is absent its tests
# are left out and named: they count as skipped, never as passed. REQUIRE_ALL=1
# makes that an error. FILTER (nextest's language) chooses among them.
# No word here is a pattern of files.
set -euf

lab=$1
kernel=$2
tools=$3
output=$4
filter=${FILTER:-all()}
# The same selection as `make test` has, so that nothing is built twice.
selection='--workspace --test lab_*'

say() {
    printf 'lab: %s\n' "$*"
}

mkdir -p "$output"
# shellcheck disable=SC2086
cargo nextest list $selection --profile lab --list-type binaries-only \
    --message-format json >"$output/binaries.json"
cargo metadata --format-version 1 --offline >"$output/metadata.json" 2>"$output/metadata.log" ||
    cargo metadata --format-version 1 >"$output/metadata.json"

# Tests by name, one a line.
tests_of() {
    cargo nextest list --profile lab --binaries-metadata "$output/binaries.json" \
        --cargo-metadata "$output/metadata.json" --color never \
        --message-format oneline -E "test(/^$1::/) & ($filter)" 2>"$output/list.log" || {
        cat "$output/list.log" >&2
        return 1
    }
}

skipped=
# NAME VARIABLE VALUE PROGRAM MODULE: the variable names the VMM, else it is
# looked for on PATH.
look_for() {
    if [ -n "$3" ]; then
        [ -f "$3" ] && [ -x "$3" ] || {
            say "$2=$3: there is no such program" >&2
            exit 1
        }
        say "$1: $3"
        return
    fi
    if found=$(command -v "$4"); then
        say "$1: $found"
        return
    fi
    names=$(tests_of "$5") || exit 1
    [ -n "$names" ] || return 0
    filter="($filter) - test(/^$5::/)"
    count=$(printf '%s\n' "$names" | wc -l)
    skipped="$skipped
lab: SKIPPED for want of $1 (\$$2 names it, or PATH): $count tests
$(printf '%s\n' "$names" | sed 's/^/lab:   /')"
}
look_for QEMU QEMU "${QEMU:-}" qemu-system-x86_64 qemu
look_for 'Cloud Hypervisor' CLOUD_HYPERVISOR "${CLOUD_HYPERVISOR:-}" cloud-hypervisor cloud_hypervisor
look_for Firecracker FIRECRACKER "${FIRECRACKER:-}" firecracker firecracker

if [ -n "$skipped" ]; then
    printf '%s\n' "$skipped" | sed 1d
    if [ "${REQUIRE_ALL:-}" = 1 ]; then
        say 'REQUIRE_ALL=1: that is an error' >&2
        exit 1
    fi
fi

# What serves directories to guests: not the daemon that serves the nested host.
guests_virtiofsd=${VIRTIOFSD:-$(dirname "$tools")/virtiofsd/bin/virtiofsd}
if [ -x "$guests_virtiofsd" ]; then
    LAB_OPTIONS="${LAB_OPTIONS:-} --env VIRTIOFSD=$guests_virtiofsd"
fi

# The runner itself, not through cargo: in the nested host each process costs.
runner=$(command -v cargo-nextest) || runner=${CARGO_HOME:-$HOME/.cargo}/bin/cargo-nextest
run() {
    # shellcheck disable=SC2086
    "$lab" run --quiet --kernel "$kernel" --tools "$tools/bin" --deadline "${LAB_DEADLINE:-3600}" \
        --share "$output" \
        ${LAB_OPTIONS:-} -- "$runner" nextest run --profile lab \
        --binaries-metadata "$output/binaries.json" --cargo-metadata "$output/metadata.json" \
        --no-fail-fast --no-tests=fail -E "$filter"
}
# No test can make a kernel stand still: the emulator did.
for machine in first second third; do
    status=0
    run || status=$?
    [ "$status" -eq 124 ] || break
    say "the $machine of three nested hosts stood still, and all of its tests with it" >&2
done
exit "$status"
