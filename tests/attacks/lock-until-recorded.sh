#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # the lock is held until the record is written: a second run cannot come between the two
need_strace
strace -f -qq -o tr -e trace=unlink,unlinkat,rename,renameat2,fsync "$MQ" run r.yaml -q
lock=$(grep -n 'unlink.*monoquant-lock' tr | tail -1 | cut -d: -f1)
record=$(grep -n 'rename.*monoquant-record' tr | tail -1 | cut -d: -f1)
[ -n "$lock" ] && [ -n "$record" ] && [ "$lock" -gt "$record" ] || wrong "the lock goes at line ${lock:-?}, the record comes at ${record:-?}"
[ "$lock" = "$(wc -l < tr)" ] || wrong "something is changed after the lock has gone: $(tail -n +$((lock + 1)) tr | head -3)"
conclude
