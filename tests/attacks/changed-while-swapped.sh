#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # somebody writes into the output just before, and just after, it is swapped: nothing of theirs is lost
need_strace
for when in delay_enter delay_exit; do
    for fails in "" "-e inject=renameat2:error=EINVAL"; do
        call=${fails:+rename}; call=${call:-renameat2}
        for round in 1 2 3 4; do
            rm -rf out .out.*; "$MQ" run r.yaml -q
            # shellcheck disable=SC2086
            strace -f -qq -o /dev/null -e trace=rename,renameat2 $fails -e inject=$call:$when=1500000:when="$round" \
                "$MQ" run r.yaml -q --set quantize-int4.group_size=64 >/dev/null 2>&1 &
            run=$!
            for _ in $(seq 100); do [ -e .out.monoquant-staging/monoquant-report.json ] && break; sleep .02; done
            sleep .4
            # Into whichever folder is the output by now.
            echo precious > out/notes.txt 2>/dev/null
            written=$?
            wait $run
            [ $written != 0 ] || grep -rqs precious out .out.monoquant-old .out.monoquant-left-* || wrong "$when of $call $round: lost"
            # Nor does the next run lose it.
            "$MQ" run r.yaml -q >/dev/null 2>&1
            [ $written != 0 ] || grep -rqs precious out .out.monoquant-old .out.monoquant-left-* || wrong "$when of $call $round: lost by the next run"
        done
    done
done
conclude
