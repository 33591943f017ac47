# What the scripts share that build kernels from the distribution's linux-source
# package. Sourced by them: `here` is the directory of this file, `program` the
# kernel-config program.

export LC_ALL=C # what apt-cache prints is read

say() {
    printf 'kernel: %s\n' "$*"
}

fail() {
    say "$*" >&2
    exit 1
}

need_tools() {
    missing=
    for tool in make gcc ld bc flex bison xz cpio zstd; do
        command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
    done
    # objtool, a part of the build, reads ELF files by it.
    [ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
    [ -z "$missing" ] || fail "missing:$missing (as root: apt-get install make gcc binutils bc flex bison xz-utils cpio zstd libelf-dev)"
}

# Sets `package`, and `archive` to its file.
find_source() {
    package=$(apt-cache depends --important linux-source 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-source-[0-9][^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || fail "linux-source is in no list of packages: run apt-get update as root (on Debian)"
    archive=$(sh "$here/../rootfs-builder/fetch-debian-packages.sh" "$package")
}

# The source into the directory `part`, as `source`; `config` is its configuration.
unpack_source() {
    say "unpacking $package"
    dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$part" --wildcards './usr/src/linux-source-*.tar.xz'
    mkdir "$part/source"
    xz -dc "$part"/usr/src/linux-source-*.tar.xz | tar -x -C "$part/source" --strip-components=1
    rm -rf "$part/usr"
    config=$part/source/.config
}

# make in that source. `architecture` is the kernel's word for the machine.
build() {
    make -s -C "$part/source" -j "${JOBS:-$(nproc)}" ARCH="$architecture" \
        KBUILD_BUILD_USER=tardigrade KBUILD_BUILD_HOST=tardigrade \
        KBUILD_BUILD_TIMESTAMP=@"${SOURCE_DATE_EPOCH:-0}" KBUILD_BUILD_VERSION=1 "$@"
}

# A configuration of what is asked for on standard input, and nothing else.
configure() {
    cat >"$part/asked"
    KCONFIG_ALLCONFIG="$part/asked" build allnoconfig >/dev/null
}
