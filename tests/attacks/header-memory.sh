#!/usr/bin/env bash
# Takes several minutes: `.ci/attacks` runs it, `.ci/run` does not.
. "$(dirname "$0")/lib.sh"   # the longest headers, 1.4 million tensors: looking at them and planning stay under 512 MiB
cat > headers.py <<'P'
import os, struct, sys
PARTS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
MATRIX, TINY = ("BF16", "[16,32]", 1024), ("BF16", "[1,1]", 2)
layer = lambda i: f"model.layers.{i // 7}.{PARTS[i % 7]}.weight"
KINDS = {
    "bytes": lambda i: (f"t{i}", "U8", "[1]", 1),
    "layers": lambda i: (layer(i), *MATRIX),
    "kept": lambda i: (layer(i), *TINY),
    "mixed": lambda i: (layer(i), *(TINY if i % 7 in (3, 5) else MATRIX)),
    "alternating": lambda i: (layer(i), *(TINY if i // 7 % 2 else MATRIX)),
    "experts": lambda i: (f"model.layers.{i // 768}.mlp.experts.{i % 768 // 3}.{PARTS[4 + i % 3][4:]}.weight", *MATRIX),
    "flat": lambda i: (f"m{i}.weight", *(TINY if i % 2 else MATRIX)),
    "lists": lambda i: (f"m{i}.0.a.weight", *MATRIX),
    "shapes": lambda i: (layer(i), "BF16", f"[{16 + i // 7},32]", (16 + i // 7) * 64),
}
folder, kind, count, shards = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.makedirs(folder)
index = []
for shard in range(shards):
    name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
    end, entries = 0, []
    for i in range(count * shard // shards, count * (shard + 1) // shards):
        tensor, dtype, shape, size = KINDS[kind](i)
        entries.append(f'"{tensor}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{end},{end + size}]}}')
        end += size
        if shards > 1:
            index.append(f'"{tensor}":"{name}"')
    header = ("{" + ",".join(entries) + "}").encode()
    with open(f"{folder}/{name}", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)  # the data takes no disk
if shards > 1:
    open(f"{folder}/model.safetensors.index.json", "w").write('{"metadata":{},"weight_map":{' + ",\n".join(index) + "}}")
open(f"{folder}/config.json", "w").write('{"model_type":"llama","hidden_size":32}')
P
cat > peak.py <<'P'
import os, resource, sys, time
limit = 2 << 30
start = time.time()
child = os.fork()
if child == 0:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss, f"{used.ru_utime + used.ru_stime:.1f}")
P
MOST=$((512 << 10))
measure() { # WHAT STATUS COMMAND...
    local status peak seconds
    read -r status peak seconds <<<"$(python3 peak.py "$MQ" "${@:3}")"
    echo "$1: ${*:3}: status $status, $peak KiB, $seconds s"
    [ "$status" = "$2" ] || wrong "$1: ${*:3}: status $status instead of $2: $(head -c 300 said)"
    [ "$peak" -lt $MOST ] || wrong "$1: ${*:3}: $peak KiB"
}
recipe() { # MODEL GROUP_SIZE > recipe
    sed "s/model: model/model: $1/; s/group_size: 128/group_size: $2/" r.yaml
}
# The other kinds take as long again: KINDS="mixed:4 flat:4 lists:6 experts:6" asks for them.
for kind in ${KINDS:-bytes:1 layers:6}; do
    name=${kind%:*}
    python3 headers.py "$name" "$name" "${TENSORS:-1400000}" "${kind#*:}"
    recipe "$name" 32 > "$name.yaml"
    # Of these nothing can be quantized, which an error says.
    case $name in bytes | kept) planned=2 ;; *) planned=0 ;; esac
    measure "$name" 0 inspect "$name"
    measure "$name" 0 inspect "$name" --format json
    measure "$name" $planned plan "$name.yaml" --verbose
    measure "$name" $planned plan "$name.yaml" --format json
    measure "$name" 0 check "$name.yaml"
    rm -r "$name"
done
conclude
