#!/bin/sh
# Prints the path of the .deb file of each package named, one a line. What is
# not in the cache yet is downloaded; nothing is installed, root is not needed.
#
# A file from the cache counts only if its SHA-256 is the one in the signed
# lists of packages; apt-get itself checks what it downloads.
set -eu
export LC_ALL=C # what apt-cache prints is read

if [ -n "${TARDIGRADE_CACHE:-}" ]; then
    cache=$TARDIGRADE_CACHE
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
    cache=$XDG_CACHE_HOME/tardigrade
else
    cache=${HOME:?where to keep downloaded packages? set TARDIGRADE_CACHE}/.cache/tardigrade
fi
cache=$cache/packages

say() {
    printf 'packages: %s\n' "$*" >&2
}

# Of each package the version that would be installed: "NAME VERSION SHA256".
candidates() {
    apt-cache show --no-all-versions "$@" 2>/dev/null | awk '
        $1 == "Package:" { name = $2 }
        $1 == "Version:" { version = $2 }
        $1 == "SHA256:" { if (!seen[name]++) print name, version, $2 }'
}

is_intact() {
    [ -f "$1" ] && [ "$(sha256sum <"$1")" = "$2  -" ]
}

download() {
    part=$(mktemp -d "$cache/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    trap 'exit 1' HUP INT TERM
    # Without the option apt-get, as root, would download as another user, who
    # cannot write here.
    if ! (cd "$part" && apt-get -qq -o "APT::Sandbox::User=$(id -un)" download "$1") >&2; then
        say "not downloaded; if the archive has it no more, run apt-get update as root"
        exit 1
    fi
    mv "$part"/*.deb "$file"
    rm -rf "$part"
    trap - EXIT HUP INT TERM
}

mkdir -p "$cache"
candidates=$(candidates "$@")
for package in "$@"; do
    fields=$(printf '%s\n' "$candidates" | sed -n "s/^$package //p")
    if [ -z "$fields" ]; then
        say "$package is in no list of packages: run apt-get update as root"
        exit 1
    fi
    version=${fields% *}
    digest=${fields#* }
    file=$cache/${package}_$(printf %s "$version" | tr ':~/' '___').deb
    if ! is_intact "$file" "$digest"; then
        say "downloading $package $version"
        download "$package=$version"
        if ! is_intact "$file" "$digest"; then
            rm -f "$file"
            say "$package $version: what was downloaded is not what the lists of packages say"
            exit 1
        fi
    fi
    printf '%s\n' "$file"
done
