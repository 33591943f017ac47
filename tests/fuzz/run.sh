#!/bin/sh
# Fuzzes everything that is decoded: `sh tests/fuzz/run.sh TARGET_DIRECTORY`.
#
# FUZZ_RUNS inputs (a million) for each target, and for each message of the
# target `requests`; FUZZ_TARGET names one target only. An input may take
# FUZZ_SECONDS (5); a panic, a longer one, lost memory, 256 MB asked for at
# once or 2 GB in all end it, and the input stays in fuzz/work/NAME/artifacts.
set -eu
target=$1
here=$(dirname "$0")
: "${FUZZ_RUNS:=1000000}" "${FUZZ_SECONDS:=5}" "${FUZZ_TARGET:=}"

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo 'fuzz: installing cargo-fuzz (builds programs that a fuzzer drives, with an address sanitizer)'
    cargo install -q --locked cargo-fuzz
fi
if ! command -v c++ >/dev/null 2>&1; then
    if [ "$(id -u)" -ne 0 ]; then
        echo 'fuzz: missing, to be installed as root: apt-get install g++ (compiles the fuzzer itself)' >&2
        exit 1
    fi
    echo 'fuzz: installing g++ (compiles the fuzzer itself)'
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends g++ >/dev/null
fi

echo 'fuzz: building (the first time takes minutes)'
# The sanitizer and the coverage are options of the compiler that a stable one
# does not take otherwise.
export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR="$target/fuzz"
cargo fuzz build --fuzz-dir "$here" ${FUZZ_TARGET:+"$FUZZ_TARGET"}
built=$CARGO_TARGET_DIR/$(rustc --print host-tuple)/release
work=$target/fuzz/work
mkdir -p "$work"

# NAME PROGRAM: what is new in its corpus stays for the next time.
fuzz() {
    name=$1 program=$2
    corpus=$work/$name/corpus artifacts=$work/$name/artifacts/
    mkdir -p "$corpus" "$artifacts"
    FUZZ_SEEDS=$corpus "$program"
    log=$work/$name/log
    if ! "$program" -runs="$FUZZ_RUNS" -timeout="$FUZZ_SECONDS" -max_len=16384 -len_control=0 \
        -rss_limit_mb=2048 -malloc_limit_mb=256 -print_final_stats=1 \
        -artifact_prefix="$artifacts" "$corpus" >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "fuzz: $name has failed; its input is in $artifacts" >&2
        return 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    echo "fuzz $name runs=$runs per_second=$rate edges=$edges"
}

failed=0
for one in ${FUZZ_TARGET:-requests containers seccomp frames serial replies}; do
    if [ "$one" = requests ]; then
        for message in ${FUZZ_MESSAGE:-$(FUZZ_LIST=1 "$built/requests")}; do
            FUZZ_MESSAGE=$message fuzz "requests-$message" "$built/requests" || failed=1
        done
    else
        fuzz "$one" "$built/$one" || failed=1
    fi
done
exit $failed
