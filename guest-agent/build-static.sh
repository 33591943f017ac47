#!/bin/sh
# Builds the named packages as static musl binaries into
# target/x86_64-unknown-linux-musl/release/.
#
# Where rustup has (or can get) the musl target, that is all there is to it.
# Where it cannot, the distribution's own compiler builds the standard library
# from source: on Debian 12 the packages rustc-web, cargo-web and rust-web-src.
set -eu

target=x86_64-unknown-linux-musl
: "${CARGO_TARGET_DIR:=$PWD/target}"
export CARGO_TARGET_DIR

packages="$*"

say() {
    printf 'agent: %s\n' "$*"
}

has_target() {
    library=$(rustc --print target-libdir --target $target 2>/dev/null) && [ -d "$library" ]
}

with_rustup() {
    if ! has_target; then
        command -v rustup >/dev/null 2>&1 || return 1
        say "adding the $target target to the Rust toolchain (the agent is a static binary)"
        rustup target add $target >/dev/null 2>&1 && has_target || return 1
    fi
    # The toolchain's own linker, where it has one, folds identical functions
    # and packs relocations: a fifteenth of the binary.
    linker=$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/gcc-ld
    set --
    if [ -x "$linker/ld.lld" ]; then
        set -- -C link-arg=-fuse-ld=lld -C "link-arg=-B$linker" \
            -C link-arg=-Wl,--icf=all -C link-arg=-Wl,-z,pack-relative-relocs
    fi
    for package in $packages; do
        cargo rustc -q --release --target $target -p "$package" -- "$@"
    done
}

with_distribution() {
    if ! dpkg -s rustc-web cargo-web rust-web-src musl-tools libunwind-19-dev >/dev/null 2>&1; then
        if [ "$(id -u)" -ne 0 ]; then
            say "needs rustup's $target target, or as root: apt-get install rustc-web cargo-web rust-web-src musl-tools libunwind-19-dev"
            exit 1
        fi
        say "installing the distribution's Rust compiler and sources (no musl target from rustup)"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
            rustc-web cargo-web rust-web-src musl-tools libunwind-19-dev >/dev/null
    fi
    # The unwinder of the distribution was built against glibc's fortified
    # stdio; musl has no such symbols, so the archive is completed with them.
    shim=$CARGO_TARGET_DIR/musl-unwind
    mkdir -p "$shim"
    cat >"$shim/fortify.c" <<'C'
#include <stdarg.h>
#include <stdio.h>
int __fprintf_chk(FILE *stream, int flag, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)flag;
    int written = vfprintf(stream, format, arguments);
    va_end(arguments);
    return written;
}
int __snprintf_chk(char *to, size_t size, int flag, size_t room, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)flag;
    (void)room;
    int written = vsnprintf(to, size, format, arguments);
    va_end(arguments);
    return written;
}
C
    musl-gcc -O2 -c "$shim/fortify.c" -o "$shim/fortify.o"
    unwind=$(find /usr/lib/llvm-19 /usr/lib/x86_64-linux-gnu -name libunwind.a 2>/dev/null | head -n 1)
    cp "$unwind" "$shim/libunwind.a"
    ar r "$shim/libunwind.a" "$shim/fortify.o" 2>/dev/null
    say "building with the distribution's compiler and a standard library from source (several minutes)"
    # shellcheck disable=SC2046
    env PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
        CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc \
        CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C link-self-contained=no -C target-feature=+crt-static -C relocation-model=static -L native=$shim" \
        /usr/bin/cargo build -q --release --target $target -Zbuild-std=std,panic_unwind $(printf -- "-p %s " $packages)
}

say "building $packages (static, optimised for size; the first time takes minutes)"
if [ "${TARDIGRADE_STATIC_TOOLCHAIN:-rustup}" = distribution ] || ! with_rustup; then
    with_distribution
fi
