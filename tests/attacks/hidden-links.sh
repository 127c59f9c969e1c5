#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # a link at the name of a staging folder is not followed
mkdir -p victim/sub; echo keep > victim/precious.txt; ln -s victim .out.monoquant-staging
"$MQ" run r.yaml -q 2>/dev/null
[ -e victim/precious.txt ] || wrong "what the link points to was emptied"
conclude
