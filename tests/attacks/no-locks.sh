#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # file systems without flock (Lustre, some FUSE): one at a time, and who was killed holds nothing
need_strace
for error in ENOSYS EOPNOTSUPP ENOLCK EINVAL; do
    without() { strace -f -qq -o /dev/null -e trace=flock,renameat2 -e inject=flock:error=$error "$@"; }
    rm -rf out .out.*
    without -e inject=renameat2:delay_enter=2000000:when=1 "$MQ" run r.yaml -q >/dev/null 2>&1 &
    run=$!
    for _ in $(seq 200); do [ -e .out.monoquant-staging/monoquant-report.json ] && break; sleep .02; done
    without "$MQ" run r.yaml -q --set quantize-int4.group_size=64 >/dev/null 2>err; rc=$?
    [ $rc = 4 ] && grep -q 'another run is writing' err || wrong "$error: the second ends with $rc"
    wait $run || wrong "$error: the first ends with $?"
    grep -q '"group_size": 128' out/config.json || wrong "$error: another output"
    without -e inject=renameat2:signal=KILL:when=1 "$MQ" run r.yaml -q --fresh >/dev/null 2>&1
    [ -e .out.monoquant-lock ] || wrong "$error: no lock was held"
    without "$MQ" run r.yaml -q >/dev/null 2>err || wrong "$error: after a kill: $? $(cat err)"
    left=$(find . -maxdepth 1 -name '.out.*' ! -name .out.monoquant-record)
    [ -z "$left" ] || wrong "$error: left $left"
done
# What is no missing lock but a failure is told before any work.
rm -rf out .out.*
strace -f -qq -o /dev/null -e trace=flock -e inject=flock:error=EIO "$MQ" run r.yaml -q >/dev/null 2>err; rc=$?
[ $rc = 4 ] && [ ! -e out ] || wrong "EIO: status $rc"
conclude
