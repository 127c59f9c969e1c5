#!/bin/sh
# Quantizes a model in CI and judges it: gate.sh RECIPE [BASELINE]
#   MONOQUANT  the program; default: monoquant
#   REPORTS    the folder for documents; default: reports
set -eu
recipe=$1
baseline=${2:-}
monoquant=${MONOQUANT:-monoquant}
reports=${REPORTS:-reports}

"$monoquant" check "$recipe"
"$monoquant" plan "$recipe"

set -- run "$recipe" \
    --report "$reports/monoquant.json" \
    --report "$reports/monoquant.md" \
    --report "$reports/monoquant.xml" \
    --report "$reports/monoquant.sarif" \
    --report "$reports/monoquant.html" \
    --report "gitlab=$reports/gl-code-quality-report.json"
if [ -n "$baseline" ] && [ -e "$baseline" ]; then
    set -- "$@" --baseline "$baseline" --max-drop 0.2 --max-growth 2
fi
if [ -e "$(dirname "$recipe")/monoquant.lock" ]; then
    set -- "$@" --locked
fi
if [ "${GITHUB_ACTIONS:-}" = true ]; then
    set -- "$@" --format github
fi
"$monoquant" "$@"
