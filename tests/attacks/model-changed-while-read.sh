#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # a shard that is written to while it is read, its time and perhaps its bytes restored, becomes no output
need_strace
shard=model/model-00002-of-00002.safetensors
cp -a $shard kept
for restored in no yes; do
    rm -rf out .out.*; cat kept > $shard
    # Every read takes its time, so that the change falls between two of them.
    strace -f -qq -o /dev/null -e trace=pread64 -e inject=pread64:delay_enter=20000 "$MQ" run r.yaml -q --threads 1 2>/dev/null & run=$!
    for _ in $(seq 200); do [ -e .out.monoquant-journal ] && break; sleep .05; done
    sleep .2; touch -r $shard time
    printf '\76\76\76\76' | dd of=$shard bs=1 seek=200000 conv=notrunc status=none
    if [ $restored = yes ]; then sleep .2; cat kept > $shard; fi
    touch -r time $shard
    kill -0 $run 2>/dev/null || skip "the run was over before the model changed"
    wait $run; status=$?
    [ $status = 3 ] || wrong "restored: $restored: the run ended with status $status"
    [ ! -e out ] || wrong "restored: $restored: an output was published"
done
conclude
