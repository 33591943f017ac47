#!/bin/busybox sh
# The nested host's first program: from the initrd to the shared root below an
# overlay in memory. /lab/host goes on from there.
b=/bin/busybox

die() {
    echo "lab: $*" >/dev/console
    for port in /sys/class/virtio-ports/*; do
        [ "$($b cat "$port/name" 2>/dev/null)" = lab.report ] &&
            echo "failed $*" >"/dev/${port##*/}"
    done
    $b poweroff -f
}

$b mount -t proc proc /proc && $b mount -t sysfs sysfs /sys &&
    $b mount -t devtmpfs devtmpfs /dev || die 'mount the system directories'
while read -r module; do
    $b insmod "/lab/$module.ko" || die "load $module"
done </lab/modules

$b mount -t virtiofs -o ro root /lower || die 'mount the shared root'
$b mount -t tmpfs -o mode=755,size=75% upper /upper || die 'mount the memory'
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work \
    overlay /new || die 'mount the overlay'
for directory in dev proc sys; do
    $b mount --move "/$directory" "/new/$directory" || die "move /$directory"
done
$b mount -t tmpfs -o mode=755 run /new/run && $b mkdir /new/run/lab &&
    $b cp /bin/busybox /lab/host /lab/configuration /lab/command /new/run/lab/ ||
    die 'fill /run'
exec $b switch_root /new /run/lab/busybox sh /run/lab/host
