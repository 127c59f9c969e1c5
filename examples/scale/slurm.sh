#!/usr/bin/env bash
# One recipe in parts under Slurm, and the join after them.
#   usage: slurm.sh RECIPE [PARTS]
# Recipe, model and output lie on a file system that all nodes share. SBATCH_PARTITION, SBATCH_ACCOUNT and the like are
# Slurm's own variables.
set -euo pipefail
recipe=$(realpath "$1") parts=${2:-8}
monoquant=${MONOQUANT:-monoquant}

# A part that fails is tried twice more: finished files are not made again. Statuses below 75 are not worth it.
array=$(sbatch --parsable --requeue --array="0-$((parts - 1))" --job-name=quantize --output='part-%a.log' <<SCRIPT
#!/usr/bin/env bash
for try in 1 2 3; do
    "$monoquant" run "$recipe" --part auto && exit 0
    status=\$?
    case \$status in 2 | 3 | 4 | 5 | 70) exit \$status ;; esac
done
exit \$status
SCRIPT
)

# afterany: the join itself looks whether all parts are there, and names those that are not.
sbatch --parsable --dependency="afterany:$array" --job-name=quantize-join --output=join.log <<SCRIPT
#!/usr/bin/env bash
exec "$monoquant" run "$recipe" --join --wait 5m
SCRIPT
