#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # two runs at once, one of them held up at each step in turn, with and without locks of the system
need_strace
sed 's/group_size: 128/group_size: 128\n    observer: mse/' r.yaml > b.yaml
"$MQ" run r.yaml -q; mv out a.out; rm -rf .out.*
"$MQ" run b.yaml -q; cp -r out b.out
is() { diff -r out "$1.out" >/dev/null; }
calls="flock mkdir mkdirat rename renameat2 unlink unlinkat linkat"
for mode in locks none; do
    without=(); [ $mode = locks ] || without=(-e inject=flock:error=EOPNOTSUPP)
    b() { if [ $mode = locks ]; then "$MQ" "$@"; else strace -f -qq -o /dev/null -e trace=flock "${without[@]}" "$MQ" "$@"; fi; }
    strace -f -qq -o tr -e trace=${calls// /,} "$MQ" run r.yaml -q
    is a || wrong "$mode: another output"
    "$MQ" run b.yaml -q
    for call in $calls; do
        if [ $mode = none ] && [ $call = flock ]; then continue; fi
        steps=$(grep -c " $call(" tr)
        # Of many calls of one kind, the first and the last.
        for step in $(seq "$steps"); do
            if [ "$step" -gt 6 ] && [ "$step" -le $((steps - 4)) ]; then continue; fi
            strace -f -qq -o /dev/null -e trace=flock,$call "${without[@]}" -e inject=$call:delay_exit=400000:when="$step" \
                "$MQ" run r.yaml -q >/dev/null 2>&1 &
            run=$!; statuses=
            sleep .15
            while kill -0 $run 2>/dev/null; do b run b.yaml -q >/dev/null 2>&1; statuses+=" $?"; sleep .02; done
            wait $run; rc=$?
            case $rc in 0 | 4) ;; *) wrong "$mode, $call $step: the first ends with $rc" ;; esac
            for status in $statuses; do case $status in 0 | 4) ;; *) wrong "$mode, $call $step: the second ends with $status" ;; esac; done
            is a || is b || wrong "$mode, $call $step: neither of the two outputs"
            # The record is of what is there: each of them makes its own again.
            for name in a b; do
                recipe=b.yaml; [ $name = b ] || recipe=r.yaml
                b run $recipe -q >/dev/null 2>&1 || wrong "$mode, $call $step: the run after that ends with $?"
                is $name || wrong "$mode, $call $step: the run after that makes something else"
            done
            left=$(find . -maxdepth 1 -name '.out.*' ! -name .out.monoquant-record)
            [ -z "$left" ] || wrong "$mode, $call $step: left $left"
        done
    done
done
conclude
