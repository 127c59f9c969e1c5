#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # a kill at each step of publishing, where files are shared with the old output: the next run replaces it
need_strace
sed 's/  - stage: validate/  - stage: validate\n  - stage: check-warnings/' r.yaml > b.yaml
"$MQ" run b.yaml -q; cp -r out new; rm -rf out .out.*
"$MQ" run r.yaml -q
cp -r out old
for call in renameat2 rename unlink unlinkat linkat; do
    strace -f -qq -o tr -e trace=$call "$MQ" run b.yaml -q
    steps=$(grep -c " $call(" tr)
    [ "$steps" -le 40 ] || steps=40
    "$MQ" run r.yaml -q
    for step in $(seq "$steps"); do
        strace -f -qq -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when="$step" "$MQ" run b.yaml -q >/dev/null 2>&1
        diff -r out old >/dev/null || diff -r out new >/dev/null || wrong "$call $step: neither the old nor the new output"
        "$MQ" run b.yaml -q >/dev/null 2>&1 || wrong "$call $step: the next run ends with $?"
        diff -r out new >/dev/null || wrong "$call $step: the next run makes something else"
        left=$(find . -maxdepth 1 -name '.out.*' ! -name .out.monoquant-record)
        [ -z "$left" ] || wrong "$call $step: left $left"
        "$MQ" run r.yaml -q >/dev/null 2>&1 || wrong "$call $step: the run after that ends with $?"
        diff -r out old >/dev/null || wrong "$call $step: the run after that makes something else"
    done
done
conclude
