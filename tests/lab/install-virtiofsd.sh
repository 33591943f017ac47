#!/bin/sh
# Sees to it that there is a virtiofsd this user's nested host can run with:
# the daemon that shares this machine's root with it.
#
#   install-virtiofsd.sh DIRECTORY [directories]
#
# DIRECTORY is where the crate's is installed, in bin/. With the word, one that
# can serve the directories of `host-ctl run --directory`: the crate's, and not
# an old one.
#
# The distribution's does, where there is one. QEMU's old C program, which
# Debian 12 has, serves root only: it lets the kernel refuse O_NOATIME, with
# which an overlay opens files, to whoever is not a file's owner. Users who are
# not root get the crate's.
set -eu

# The crate's version that the lab has run with.
version=1.14.0
tools=$1
purpose=${2:-lab}
[ -z "${VIRTIOFSD:-}" ] || exit 0

say() {
    printf 'lab: %s\n' "$*"
}

fits() {
    for program in "$tools/bin/virtiofsd" "$(command -v virtiofsd || :)" \
        /usr/libexec/virtiofsd /usr/lib/virtiofsd /usr/lib/qemu/virtiofsd; do
        [ -x "$program" ] || continue
        help=$("$program" --help 2>&1 || :)
        case $help in
        *--shared-dir*--translate-uid\ *) return 0 ;;
        *--shared-dir*) [ "$purpose" != lab ] || return 0 ;;
        *-o\ source=PATH*) [ "$purpose" != lab ] || [ "$(id -u)" -ne 0 ] || return 0 ;;
        esac
    done
    return 1
}

! fits || exit 0

if [ "$(id -u)" -eq 0 ]; then
    # Its own package since QEMU 8.0, part of QEMU's before.
    package=virtiofsd
    apt-cache show $package >/dev/null 2>&1 || package=qemu-system-common
    say "installing $package (virtiofsd shares directories with guests, in the lab and out of it)"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $package >/dev/null || :
    ! fits || exit 0
fi

for library in libseccomp libcap-ng; do
    name=$(printf %s "$library" | sed 's/^lib//')
    printf 'int main(void){return 0;}\n' | cc -x c - -l"$name" -o /dev/null 2>/dev/null && continue
    if [ "$(id -u)" -ne 0 ]; then
        say "virtiofsd needs $library-dev, to be installed as root: apt-get install libseccomp-dev libcap-ng-dev" >&2
        exit 1
    fi
    say "installing $library-dev (virtiofsd links it)"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$library-dev" >/dev/null
done
say "building the crate virtiofsd into $tools (no virtiofsd of the distribution's will do for this user; once, about two minutes)"
cargo install -q --locked --root "$tools" --version "$version" virtiofsd
fits || {
    say 'the virtiofsd that was built does not run' >&2
    exit 1
}
