#!/usr/bin/env bash
# What only a GPU can show, in at most nine minutes and without a network.
#
#   benchmarks/gpu.sh          # on a machine with a GPU
#   benchmarks/gpu.sh --dry    # the same code on the CPU, at toy sizes
#
# 1. The tests marked `gpu`.
# 2. The cost of each kind of step at 256 and 512 pixels with a ResNet-34, against a plain step of
#    the same batch: results/step.csv. (Pretrained or not, its steps take as long; no weights are
#    needed.)
# 3. Cells of the grid `real --large`, as many as fit: results/real_large.csv. They need COSEG_DATA,
#    and COSEG_WEIGHTS from `lite0.py`. What is there already is not run again.
#
# PYTHON names the interpreter. The rows of 2 name the card.
set -uo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
python=${PYTHON:-python}
left() { echo $((530 - (SECONDS - began))); }
export NO_ALBUMENTATIONS_UPDATE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # read once, before the first product of matrices

if [ "${1:-}" = --dry ]; then
  export COSEG_DRY=1 OMP_NUM_THREADS=1
  device=(--accelerator cpu --batch 2 --threads 1 --rounds 1)
  sizes=(32 64)
  results=$(mktemp -d)
  trap 'rm -r "$results"' EXIT
else
  device=(--accelerator gpu --batch 32 --precision bf16-mixed --channels-last --rounds 5)
  sizes=(256 512)
  results=benchmarks/results
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null

failed=0
timeout 200 "$python" -m pytest -m gpu -q -p no:cacheprovider tests/test_gpu.py || failed=1
for size in "${sizes[@]}"; do
  [ "$(left)" -gt 60 ] || break
  timeout "$(left)" "$python" benchmarks/step.py "${device[@]}" --size "$size" --encoder resnet34 \
    --kinds plain SegmentationModule joint "score, then train" "score bank" \
    --results "$results/step.csv" || failed=1
done
if [ "${1:-}" = --dry ]; then
  "$python" benchmarks/grid.py list real --large | sed -n 1,3p || failed=1
elif [ "$(left)" -gt 60 ]; then
  timeout "$(left)" "$python" benchmarks/grid.py run real --large --jobs 3
  status=$?
  [ "$status" -eq 0 ] || [ "$status" -eq 124 ] || failed=1 # 124: the time is up
fi
echo "$((SECONDS - began)) s"
exit $failed
