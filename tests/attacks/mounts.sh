#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # something is mounted on the output: told before any work (needs root)
need_root
mkdir out elsewhere
try() {
    "$MQ" run r.yaml --quiet >/dev/null 2>err; rc=$?
    umount out
    [ $rc = 2 ] && grep -q 'mount point' err || wrong "$1: status $rc"
    [ "$(ls -A | grep -c '^\.out')" = 0 ] || wrong "$1: something was begun"
}
mount -t tmpfs -o size=20m tmpfs out 2>/dev/null || skip "may not mount"
try "another disk"
mount --bind elsewhere out && try "a folder of the same disk"
mount -t tmpfs -o size=20m tmpfs out && { "$MQ" run r.yaml -q --output out/model || wrong "below a mount point: $?"; umount out; }
conclude
