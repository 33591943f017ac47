#!/bin/sh
# Runs the tests of the nested host, in it: the binaries called lab_*.
#
#   test-lab.sh LAB KERNEL TOOLS OUTPUT
#
# They are built and listed here, and run there by the same test runner. A test
# lies in a module named after the VMM it needs. Where a VMM is absent its tests
# are left out and named: they count as skipped, never as passed. REQUIRE_ALL=1
# makes that an error. FILTER (nextest's language) chooses among them; LAB_OPTIONS is
# the lab and LAB_RUN_OPTIONS for the test runner in it; LAB_PARTS nested hosts
# (2) share the tests.
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
# WHAT TESTS: those tests are left out for want of that.
leave_out() {
    count=$(printf '%s\n' "$2" | wc -l)
    skipped="$skipped
lab: SKIPPED for want of $1: $count tests
$(printf '%s\n' "$2" | sed 's/^/lab:   /')"
}

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
    leave_out "$1 (\$$2 names it, or PATH)" "$names"
}
look_for QEMU QEMU "${QEMU:-}" qemu-system-x86_64 qemu
look_for 'Cloud Hypervisor' CLOUD_HYPERVISOR "${CLOUD_HYPERVISOR:-}" cloud-hypervisor cloud_hypervisor
look_for Firecracker FIRECRACKER "${FIRECRACKER:-}" firecracker firecracker
if [ ! -f "$kernel/own/vmlinux" ]; then
    names=$(tests_of '[a-z_]+::own_kernel') || exit 1
    if [ -n "$names" ]; then
        filter="($filter) - test(/^[a-z_]+::own_kernel::/)"
        leave_out "the guest's own kernel (\`make kernel\` builds it)" "$names"
    fi
fi

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
# PART: that part of the tests. A nested host has one processor: two that are
# emulated side by side spend much of their time waiting for each other, and the
# emulator makes more mistakes with their memory. The machine's other processors
# have nested hosts of their own, each with its part of the tests.
run() {
    # shellcheck disable=SC2086
    "$lab" run --quiet --kernel "$kernel" --tools "$tools/bin" --deadline "${LAB_DEADLINE:-3600}" \
        --cpus 1 --share "$output" \
        ${LAB_OPTIONS:-} -- "$runner" nextest run --profile lab \
        --binaries-metadata "$output/binaries.json" --cargo-metadata "$output/metadata.json" \
        --no-fail-fast --no-tests="$no_tests" --partition "slice:$1/$parts" ${LAB_RUN_OPTIONS:-} -E "$filter"
}
# No test can make a kernel stand still: the emulator did.
run_until_it_ends() {
    for machine in first second third; do
        status=0
        run "$1" || status=$?
        [ "$status" -eq 124 ] || break
        say "the $machine of three nested hosts stood still, and all of its tests with it" >&2
    done
    return "$status"
}

processors=$(nproc)
parts=${LAB_PARTS:-$((processors < 2 ? 1 : 2))}
no_tests=fail
[ "$parts" -eq 1 ] || no_tests=pass
part=2
while [ "$part" -le "$parts" ]; do
    say "part $part of $parts: on a nested host of its own, and told at the end"
    run_until_it_ends "$part" >"$output/part-$part.log" 2>&1 &
    eval "process_$part=\$!"
    part=$((part + 1))
done
outcome=0
run_until_it_ends 1 || outcome=$?
part=2
while [ "$part" -le "$parts" ]; do
    eval "wait \$process_$part" || outcome=$?
    say "part $part of $parts:"
    cat "$output/part-$part.log"
    part=$((part + 1))
done
exit "$outcome"
