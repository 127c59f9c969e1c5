#!/usr/bin/env bash
# One recipe in parts under AWS Batch, and the join after them.
#   usage: aws-batch.sh RECIPE QUEUE DEFINITION [PARTS]
# The job definition's container has monoquant as its entry point, and mounts (EFS, FSx) the recipe, the model and the
# output at the same paths everywhere.
set -euo pipefail
recipe=$1 queue=$2 definition=$3 parts=${4:-8}

submit() { aws batch submit-job --job-queue "$queue" --job-definition "$definition" --query jobId --output text "$@"; }

array=$(submit --job-name quantize --array-properties "size=$parts" --retry-strategy attempts=3 \
    --container-overrides "command=run,$recipe,--part,auto/$parts")
submit --job-name quantize-join --depends-on "jobId=$array" --retry-strategy attempts=3 \
    --container-overrides "command=run,$recipe,--join"
