# Sourced by the scripts here. BIN is the binary, MAIN a checkout of the project. A script works in a fresh folder, says what it
# tries, and its last line is FOUND (something is wrong), "not found", or "skipped: why".
MAIN=${MAIN:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
MQ=${BIN:-$MAIN/target/release/monoquant}
W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT
cd "$W" || exit 2
# In CI nothing is taken over unless a script asks for it.
unset CI
cp -r "$MAIN/examples/tiny-llama" model
cat > r.yaml <<'R'
version: 1
stages:
  - stage: load
    model: model
  - stage: quantize-int4
    group_size: 128
  - stage: validate
  - stage: export
    path: out
    overwrite: replace
R

found=0
# Notes that something is wrong, and says what.
wrong() { found=1; echo "wrong: $*"; }
# The last line of a script.
conclude() { if [ "$found" = 0 ]; then echo "not found"; else echo "FOUND"; fi; }
# Ends a script that cannot be run here.
skip() { echo "skipped: $*"; exit 0; }
need_strace() { strace -qq -o /dev/null true 2>/dev/null || skip "strace is not there, or may not trace"; }
need_root() { [ "$(id -u)" = 0 ] || skip "needs root"; }
