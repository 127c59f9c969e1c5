#!/usr/bin/env bash
# Under a limit of processes: fewer threads and the same bytes, or an error in words, and never a bug.
# (The model card and the report name the output.)
. "$(dirname "$0")/lib.sh"
need_root
command -v setpriv >/dev/null || skip "setpriv is not there"
# Processes are counted by user: one who has no others.
user=$((20000 + $$ % 40000))
cp "$MQ" mq
"./mq" run r.yaml -q --output full || wrong "no run without limits"
chmod -R a+rwX .
for processes in 1 2 3 4 8 16; do
    echo "at most $processes processes, 16 threads"
    setpriv --reuid="$user" --regid="$user" --clear-groups bash -c "ulimit -u $processes; exec ./mq run r.yaml --fresh --threads 16 --output of-$processes" > log 2>&1
    status=$?
    case $status in
        0) [ "$processes" -ge 16 ] || grep -q "run::threads" log || wrong "fewer threads with $processes processes are not told"
           diff -rq --exclude=monoquant-report.json --exclude=README.md full "of-$processes" >/dev/null || wrong "other weights with $processes processes" ;;
        2 | 4) grep -q "ulimit" log || wrong "no advice with $processes processes: $(head -3 log)" ;;
        *) wrong "status $status with $processes processes: $(head -3 log)" ;;
    esac
    [ "$processes" -lt 2 ] || [ "$status" = 0 ] || wrong "no run with $processes processes"
done
conclude
