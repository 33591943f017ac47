#!/bin/sh
# The demonstration: a real redis-server is booted once in a microVM, warmed
# with data, frozen, and woken eight times; each copy answers with the warmed
# data and shares no identity with the others.
set -eu

: "${HOST_CTL:?}" "${DEMO_IMAGE:?}" "${DEMO_HOME:?}"
: "${CLONES:=8}"
export TARDIGRADE_HOME="$DEMO_HOME"
mkdir -p "$DEMO_HOME"
chmod 700 "$DEMO_HOME"
started=$(date +%s)

say() {
    printf '\n== %s\n' "$*"
}

finish() {
    status=$?
    # What a broken run left is removed too; the template stays for the next.
    "$HOST_CTL" rm --all >/dev/null 2>&1 || true
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say 'this machine'
"$HOST_CTL" doctor || true

# The service's command, the same for the cold boot and for the template.
set -- redis-server --save '' --appendonly no --bind 127.0.0.1 --dir /data

say 'a cold boot: VM, kernel, agent, container, redis answering'
"$HOST_CTL" run --rootfs "$DEMO_IMAGE" --memory 256 --ready 'redis-cli ping' -- "$@"
"$HOST_CTL" rm --all >/dev/null

say 'boot once, warm with data, freeze: the template "redis"'
"$HOST_CTL" template rm redis >/dev/null 2>&1 || true
# shellcheck disable=SC2016
"$HOST_CTL" template build redis --rootfs "$DEMO_IMAGE" --memory 256 --ready 'redis-cli ping' \
    --warm 'redis-cli set greeting frozen-and-awake' \
    --warm 'sh -c "for n in $(seq 1 200); do echo SET key:$n value-$n; done | redis-cli --pipe"' \
    -- "$@"

say "wake $CLONES copies of it"
"$HOST_CTL" clone redis -n "$CLONES" --ready

say 'each copy answers with the warmed data'
for sandbox in $("$HOST_CTL" list --quiet); do
    greeting=$("$HOST_CTL" exec "$sandbox" -- redis-cli get greeting)
    keys=$("$HOST_CTL" exec "$sandbox" -- redis-cli dbsize)
    printf '%s  greeting=%s  keys=%s\n' "$sandbox" "$greeting" "$keys"
    [ "$greeting" = frozen-and-awake ] && [ "$keys" = 201 ] || {
        echo "demo: $sandbox does not have the warmed data" >&2
        exit 1
    }
done

say "done in $(($(date +%s) - started)) s; the template stays for: host-ctl clone redis"
