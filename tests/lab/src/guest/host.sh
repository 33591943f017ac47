# The nested host's PID 1: completes the machine, runs the command, and reports
# its end. The shell's own tools are busybox's: nothing of the shared root is
# needed to get here.
export PATH=/run/lab/tools
/run/lab/busybox mkdir /run/lab/tools
/run/lab/busybox --install -s /run/lab/tools

port() {
    for entry in /sys/class/virtio-ports/*; do
        [ "$(cat "$entry/name")" = "lab.$1" ] && echo "/dev/${entry##*/}"
    done
}
report=$(port report)

die() {
    echo "lab: $*" >/dev/console
    echo "failed $*" >"$report"
    poweroff -f
}

mount_share() {
    mkdir -p "$2" && mount -t virtiofs "$1" "$2"
}

. /run/lab/configuration

# What an init system would have done.
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/net
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts || die 'mount /dev/pts'
mount -t tmpfs -o mode=1777 shm /dev/shm || die 'mount /dev/shm'
mount -t mqueue mqueue /dev/mqueue || die 'mount /dev/mqueue'
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mkdir -p /run/lock /run/user
chmod 1777 /run/lock
: >/run/tardigrade-lab
mount -t cgroup2 cgroup2 /sys/fs/cgroup || die 'mount /sys/fs/cgroup'
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || die "use the $controller controller"
done
hostname lab
ip link set lo up || die 'bring up lo'
mount_shares || die 'mount a shared directory'

# What makes it a host.
release=$(uname -r)
mkdir -p "/lib/modules/$release" && mount -o bind "$modules" "/lib/modules/$release" ||
    die 'bind the modules'
for module in $load; do
    modprobe "$module" || die "load $module"
done
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200
for device in kvm vhost-vsock net/tun; do
    [ -c "/dev/$device" ] || die "find /dev/$device"
done
chmod 666 /dev/kvm /dev/net/tun
ulimit -Hn 1048576
ulimit -n 65536

# Its output goes through pipes, as anywhere else: a port can be opened once. It
# is counted on the way: what was written to a port is not yet at the lab.
keep=
for stream in stdout stderr; do
    mkfifo "/run/lab/$stream" "/run/lab/$stream.copy"
    tee "$(port "$stream")" <"/run/lab/$stream" >"/run/lab/$stream.copy" &
    keep="$keep $!"
    wc -c <"/run/lab/$stream.copy" >"/run/lab/$stream.count" &
    keep="$keep $!"
done
# What the lab sends comes back: it tells a busy machine from one that stands still.
pulse=$(port pulse)
while read -r beat; do echo; done <>"$pulse" >&0 &
heart=$!
echo up >"$report"
setsid sh /run/lab/command </dev/null >/run/lab/stdout 2>/run/lab/stderr &
wait $!
status=$?

# What it left running ends here, so that its pipes do; kernel threads, and
# this shell, cannot be killed.
for process in /proc/[0-9]*; do
    process=${process##*/}
    case "$keep $heart " in
    *" $process "*) ;;
    *) kill -9 "$process" 2>/dev/null ;;
    esac
done
wait $keep
sync
echo "exit $status $(cat /run/lab/stdout.count) $(cat /run/lab/stderr.count)" >"$report"
# The lab ends the machine.
while :; do sleep 3600; done
