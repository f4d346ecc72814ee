#!/usr/bin/env bash
# What only an NVIDIA GPU can show, in three parts of at most eight minutes each:
#     bash benchmarks/gpu.sh tests        the tests marked `gpu`
#     bash benchmarks/gpu.sh benchmarks   speed and memory of inference and of the training step, beside native
#                                         transformers, timm and compiled networks
#     bash benchmarks/gpu.sh demo         the recipe demo_gpu with its scores; the same command goes on where it stopped
# It needs this clone and a Python with pip (PYTHON, by default python3), in whose environment it installs what is
# missing. All results are in the folder gpu-results. A part that fails or takes too long ends with another status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

part=${1:-}
PYTHON=${PYTHON:-python3}
RESULTS=gpu-results

run() { # COMMAND...: for eight minutes at most; what it prints is kept
    timeout --signal TERM --kill-after 20 480 "$@" 2>&1 | tee "$RESULTS/$part.txt"
}

tests() {
    run "$PYTHON" -m pytest -q -n 0 -m gpu
}

benchmarks() {
    run "$PYTHON" -m benchmarks.all --device cuda --only inference,sizes,training --dtypes bfloat16
    cp -r benchmarks/results "$RESULTS/"
}

demo() {
    run "$PYTHON" -m modeling_radio distill --recipe demo_gpu --output "$RESULTS/demo_gpu" --max-minutes 6
    if [ ! -d "$RESULTS/demo_gpu/final" ]; then
        echo "Not finished: the same command goes on."
        return
    fi
    "$PYTHON" -m modeling_radio evaluate "$RESULTS/demo_gpu/final" --tasks knn,segmentation_probe,adaptor_fidelity \
        --output "$RESULTS/demo_gpu.json"
}

case "$part" in
tests | benchmarks | demo) ;;
*)
    sed -n '2,8s/^# \?//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
mkdir -p "$RESULTS"
"$PYTHON" -c "import modeling_radio, pytest, peft" 2>/dev/null ||
    "$PYTHON" -m pip install --quiet --editable ".[dev]"
"$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$RESULTS/gpu.csv"
"$PYTHON" -m pip freeze >"$RESULTS/packages.txt"
"$part"
