#!/bin/sh
# Runs the tests of the nested host, in it: the binaries called lab_*.
#
#   test-lab.sh LAB KERNEL TOOLS OUTPUT
#
# They are built and listed here, and run there by the same test runner. A test
# lies in a module named after the VMM it needs. Where a VMM is absent its tests
# are left out and named: they count as skipped, never as passed. REQUIRE_ALL=1
# makes that an error. FILTER (nextest's language) chooses among them; LAB_OPTIONS
# is for the lab and LAB_RUN_OPTIONS for the test runner in it; LAB_PARTS nested
# hosts share the tests.
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
# What is left of them all is looked at here: a part of them may well be empty.
left=$(cargo nextest list --profile lab --binaries-metadata "$output/binaries.json" \
    --cargo-metadata "$output/metadata.json" --color never --message-format oneline \
    -E "$filter" 2>"$output/list.log") || {
    cat "$output/list.log" >&2
    exit 1
}
[ -n "$left" ] || {
    say 'no test is left to be run' >&2
    exit 1
}

# A nested host has one processor: two that are emulated side by side spend much
# of their time waiting for each other, and the emulator makes more mistakes with
# their memory. The machine's other processor has a nested host of its own, with
# its part of the tests, where there is memory for it.
processors=$(nproc)
available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
parts=1
[ "$processors" -lt 2 ] || [ "${available:-0}" -lt $((9 << 20)) ] || parts=2
parts=${LAB_PARTS:-$parts}
case " ${LAB_OPTIONS:-}" in
*' --cpus'*) ;;
*) LAB_OPTIONS="${LAB_OPTIONS:-} --cpus 1" ;;
esac

# PART: that part of the tests.
run() {
    part_option=
    [ "$parts" -eq 1 ] || part_option="--partition count:$1/$parts"
    # shellcheck disable=SC2086
    exec "$lab" run --quiet --kernel "$kernel" --tools "$tools/bin" \
        --deadline "${LAB_DEADLINE:-3600}" --share "$output" ${LAB_OPTIONS:-} \
        -- "$runner" nextest run --profile lab --binaries-metadata "$output/binaries.json" \
        --cargo-metadata "$output/metadata.json" --no-fail-fast --no-tests=pass \
        $part_option ${LAB_RUN_OPTIONS:-} -E "$filter"
}
# PART: until a nested host has done it. No test can make a kernel stand still:
# the emulator did.
machine=
run_until_it_ends() {
    for turn in first second third; do
        status=0
        run "$1" &
        machine=$!
        wait "$machine" || status=$?
        machine=
        [ "$status" -eq 124 ] || break
        say "the $turn of three nested hosts stood still, and all of its tests with it" >&2
    done
    return "$status"
}
# Asks the nested host to end, and waits for that.
end_machine() {
    [ -z "$machine" ] || {
        kill "$machine" 2>/dev/null || true
        wait "$machine" || true
    }
}

others=
# What is in the background does not hear of Ctrl-C by itself.
stop() {
    trap - INT TERM HUP
    # shellcheck disable=SC2086
    [ -z "$others" ] || kill $others 2>/dev/null || true
    end_machine
    wait || true
    exit 130
}
trap stop INT TERM HUP

part=2
while [ "$part" -le "$parts" ]; do
    say "part $part of $parts: on a nested host of its own, and told at the end"
    (
        trap 'end_machine; exit 143' TERM
        run_until_it_ends "$part"
    ) >"$output/part-$part.log" 2>&1 &
    others="$others $!"
    part=$((part + 1))
done
outcome=0
run_until_it_ends 1 || outcome=$?
part=2
for other in $others; do
    wait "$other" || outcome=$?
    say "part $part of $parts:"
    cat "$output/part-$part.log"
    part=$((part + 1))
done
exit "$outcome"
