#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # no RENAME_EXCHANGE (NFS, FUSE, 9p), and a kill at each rename: the next run repairs, also where it fails
need_strace
other=(--set quantize-int4.group_size=64)
"$MQ" run r.yaml -q "${other[@]}"; cp -r out new; rm -rf out .out.*
"$MQ" run r.yaml -q; cp -r out old
calls=rename,renameat,renameat2
strace -f -qq -o tr -e trace=$calls -e inject=renameat2:error=EINVAL "$MQ" run r.yaml -q "${other[@]}"
steps=$(grep -c ' rename(' tr)
[ "$steps" -ge 3 ] || wrong "only $steps renames"
for step in $(seq "$steps"); do
    for next in "--model nowhere" "--set quantize-int4.targets=[nothing.of.it]" ""; do
        rm -rf out .out.*; cp -a old out
        strace -f -qq -o /dev/null -e trace=$calls -e inject=renameat2:error=EINVAL -e inject=rename:signal=KILL:when="$step" \
            "$MQ" run r.yaml -q "${other[@]}" >/dev/null 2>&1
        # shellcheck disable=SC2086
        "$MQ" run r.yaml -q "${other[@]}" $next >/dev/null 2>&1; rc=$?
        diff -r out old >/dev/null || diff -r out new >/dev/null || wrong "rename $step, then '$next' ($rc): neither the old nor the new output"
        [ -e .out.monoquant-old ] && wrong "rename $step, then '$next': the old output is left"
        [ -n "$next" ] || { [ $rc = 0 ] && diff -r out new >/dev/null; } || wrong "rename $step: the next run ends with $rc"
    done
done
conclude
