#!/usr/bin/env bash
# Tests and measurements that need an NVIDIA GPU, in parts of at most eight minutes each:
#     bash benchmarks/gpu.sh              all parts, one after the other
#     bash benchmarks/gpu.sh PART...      these parts
# In the order of their worth:
#     tests      the tests marked `gpu`
#     inference  speed and memory of one image and of full batches, beside native transformers, timm and plain code
#     step       a training step of the large recipes: its time and kernel starts beside those of `radio plan`
# They need no download: pictures are drawn, weights are random. The Python (PYTHON, by default python3) gets
# what it lacks by pip: from WHEELS, a folder made elsewhere by `pip wheel --wheel-dir FOLDER ".[dev]" setuptools`, or
# else from PyPI. Text, tables, card and versions go to RESULTS, by default gpu-results. A part that fails or takes too
# long does not stop the others; the status is then 1. DEVICE=cpu tries the parts on a CPU, with small networks.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PARTS=(tests inference step)
SECONDS_OF_PART=480
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
RESULTS=${RESULTS:-gpu-results}

commands_of() { # PART: prints its command, a word a line
    local words=()
    case "$1" in
    tests) words=(pytest -q -n 0 -m gpu) ;;
    inference) words=(benchmarks.all --only inference --dtypes bfloat16 --device "$DEVICE") ;;
    step) words=(benchmarks.planned --device "$DEVICE") ;;
    *) return 1 ;;
    esac
    [[ $DEVICE == cpu && ${words[0]} == benchmarks.* ]] && words+=(--quick)
    [[ $DEVICE == cpu && $1 == inference ]] && words+=(--preset radio-test --sizes 224)
    printf '%s\n' "$PYTHON" -m "${words[@]}"
}

run_part() { # PART
    local command
    mapfile -t command < <(commands_of "$1")
    timeout --signal TERM --kill-after 20 $SECONDS_OF_PART "${command[@]}"
}

[[ $# -gt 0 ]] || set -- "${PARTS[@]}"
for part in "$@"; do
    commands_of "$part" >/dev/null || {
        sed -n '2,/^set/s/^# \?//p' "${BASH_SOURCE[0]}"
        exit 2
    }
done
mkdir -p "$RESULTS"
if ! "$PYTHON" -c "import modeling_radio, pytest, timm, torchao" 2>/dev/null; then
    source=(${WHEELS:+--no-index --find-links "$WHEELS"})
    "$PYTHON" -m pip install --quiet ${source[@]+"${source[@]}"} --editable ".[dev]" || exit
fi
if [[ $DEVICE == cuda ]]; then
    "$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'" || exit
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$RESULTS/gpu.csv"
fi
"$PYTHON" -m pip freeze >"$RESULTS/packages.txt"
failed=()
for part in "$@"; do
    echo "== $part"
    run_part "$part" 2>&1 | tee "$RESULTS/$part.txt" || failed+=("$part")
    tables=benchmarks/results
    [[ $DEVICE == cpu ]] && tables=runs/benchmarks-quick
    cp "$tables/inference.jsonl" "$tables/planned.jsonl" "$RESULTS/" 2>/dev/null
done
[[ ${#failed[@]} -eq 0 ]] || { echo "Failed: ${failed[*]}; see $RESULTS." && exit 1; }
