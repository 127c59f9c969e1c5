#!/usr/bin/env bash
. "$(dirname "$0")/lib.sh"   # --memory counts what is kept of each tensor: 100,000 of them, made, made again and taken over
cat > model.py <<'P'
import json, os, shutil, struct, sys
count = int(sys.argv[1])
shutil.rmtree("model")
os.makedirs("model")
name = lambda i: f"model.layers.{i // 200}.mlp.experts.{i % 200}.up_proj.weight"
header = json.dumps({name(i): {"dtype": "BF16", "shape": [16, 32], "data_offsets": [i * 1024, (i + 1) * 1024]} for i in range(count)}).encode()
with open("model/model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    file.write(b"\x3f\x3e\x11\x3f" * (count * 256))
json.dump({"model_type": "llama"}, open("model/config.json", "w"))
P
cat > peak.py <<'P'
import os, sys
child = os.fork()
if child == 0:
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
P
recipe() { sed "s/group_size: 128/group_size: $1\n    siblings: ignore/" r.yaml; }
run() { # WHAT ARGUMENTS...: within what the plan says, and that within --memory
    planned=$("$MQ" plan x.yaml --json --memory "$MEMORY" | python3 -c 'import json, sys; print(json.load(sys.stdin)["memory_bound"] // 1024)')
    read -r status peak <<<"$(python3 peak.py "$MQ" run x.yaml -q --memory "$MEMORY" "${@:2}")"
    echo "$1: status $status, $peak KiB, planned $planned KiB of $MEMORY"
    [ "$status" = 0 ] || wrong "$1: status $status"
    [ "$peak" -le "$planned" ] || wrong "$1: $peak KiB, planned $planned"
}
for count in 100000 20000; do
    python3 model.py $count
    rm -rf out .out.*
    MEMORY=$((count * 6800 / 1000000))MiB
    recipe 32 > x.yaml; run "$count tensors, the first time"
    run "$count tensors, up to date"
    run "$count tensors, made again" --fresh
    recipe 16 > x.yaml; run "$count tensors, another recipe"
    # Too little for what is kept of the tensors is told, with how much it takes, and that is enough.
    said=$("$MQ" run x.yaml -q --memory 16MiB 2>&1); rc=$?
    [ $rc = 2 ] || wrong "too little: status $rc"
    grep -q "plan::memory" <<<"$said" || wrong "too little: $said"
    MEMORY=$(grep -o '[0-9]* MiB' <<<"$said" | head -n 1 | tr -d ' ')
    run "$count tensors, as little as is said" --fresh
done
conclude
