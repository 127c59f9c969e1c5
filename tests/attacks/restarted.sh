#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # the system was started anew (another boot_id, needs root): bytes that were never flushed are not believed
need_root; need_strace
"$MQ" run r.yaml -q; sleep 2.2; "$MQ" run r.yaml -q --fresh; cp -r out expected
cat /proc/sys/kernel/random/boot_id | tr 0-9 1-90 > boot
mount --bind boot /proc/sys/kernel/random/boot_id 2>/dev/null || skip "may not mount"
trap 'umount /proc/sys/kernel/random/boot_id; rm -rf "$W"' EXIT
strace -f -y -qq -o tr -e trace=read,pread64 "$MQ" run r.yaml -q --threads 1 || wrong "status $?"
diff -r out expected >/dev/null || wrong "another output"
for name in out/model-00001-of-00002.safetensors out/tokenizer.json model/model-00001-of-00002.safetensors; do
    [ -e "$name" ] || continue
    read=$(grep -F "<$(realpath "$name")>" tr | sed -n 's/.*= \([0-9]*\)$/\1/p' | awk '{ n += $1 } END { print n + 0 }')
    [ "$read" -ge $(($(stat -c %s "$name") * 9 / 10)) ] || wrong "$name was believed: $read bytes read"
done
conclude
