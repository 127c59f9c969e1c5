#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # links, pipes and second names in the places of hidden siblings: nothing outside is changed
mkdir -p victim/sub; echo keep > victim/precious.txt; cp -r victim expected
failing() { sed 's/  - stage: validate/  - stage: check-warnings\n    sqnr_error_threshold: 90\n    on_failure: error/' r.yaml > failing.yaml; }
failing
untouched() { diff -r victim expected >/dev/null || wrong "$1: what is outside has changed"; }
for name in .out.monoquant-{staging,interrupted,old,journal,record,new,lock,unlock} out.failed-report.json; do
    for to in victim victim/precious.txt victim/absent; do
        ln -s "$to" "$name"
        for recipe in r.yaml failing.yaml; do
            timeout 60 "$MQ" run $recipe -q >/dev/null 2>&1; rc=$?
            [ $rc = 4 ] || wrong "$name -> $to: status $rc"
            [ -L "$name" ] && [ ! -e out ] || wrong "$name -> $to: the link was replaced, or something published"
            untouched "$name -> $to"
        done
        rm "$name"
    done
    mkfifo "$name"
    timeout 60 "$MQ" run r.yaml -q >/dev/null 2>&1; rc=$?
    [ $rc = 4 ] && [ -p "$name" ] || wrong "a pipe at $name: status $rc"
    rm "$name"
done
for name in .out.monoquant-{journal,record,new,lock,unlock}; do
    ln victim/precious.txt "$name"
    "$MQ" run r.yaml -q --fresh >/dev/null 2>&1
    untouched "a second name at $name"
    rm -rf "$name" out
done
conclude
