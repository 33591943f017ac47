#!/bin/sh
# Runs the tests that need no lab.
#
#   run-tests.sh KERNELS
#
# Those in a module named own_kernel need the guest's own kernel in KERNELS/own.
# Where it was not built they are left out and named: they count as skipped, never
# as passed. REQUIRE_ALL=1 makes that an error.
set -eu

kernels=$1
filter='all()'

say() {
    printf 'test: %s\n' "$*"
}

if [ ! -f "$kernels/own/bzImage" ]; then
    needing='test(/(^|::)own_kernel::/)'
    names=$(cargo nextest list --workspace --color never --message-format oneline -E "$needing")
    count=$(printf '%s\n' "$names" | wc -l)
    say "SKIPPED for want of the guest's own kernel (\`make kernel\` builds it): $count tests"
    printf '%s\n' "$names" | sed 's/^/test:   /'
    if [ "${REQUIRE_ALL:-}" = 1 ]; then
        say 'REQUIRE_ALL=1: that is an error' >&2
        exit 1
    fi
    filter="not $needing"
fi
say 'cargo nextest run --workspace --no-fail-fast'
cargo nextest run --workspace --no-fail-fast -E "$filter"
