#!/bin/sh
# Every GPU benchmark, each in its quick form: ten minutes on an H100 or better. JSON and logs go to $OUT, tables to stdout.
#
#     OUT=outputs/measured/gpu sh benchmarks/gpu/run_all.sh [--tiny]
#
# Python must have torch >= 2.11, transformers, accelerate, peft and pydantic; no network, data or FAISS. PYTHON names it.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${OUT:-outputs/measured/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0
export HF_HUB_OFFLINE=1
if [ "${1:-}" != --tiny ]; then
    echo "## kernels against the loop"
    timeout 90 "$python" -m pytest -q -m gpu tests/encoders/test_unpadded.py tests/training/test_on_gpu.py > "$out/tests.log" 2>&1 || failed=1
    tail -n 3 "$out/tests.log"
fi
echo "## training"
timeout 260 "$python" benchmarks/gpu/training.py --quick --minutes 3.5 --output "$out/training.json" "$@" 2> "$out/training.log" || failed=1
echo
echo "## bulk encoding"
timeout 120 "$python" benchmarks/gpu/encoding.py --texts 4096 --minutes 1.2 --output "$out/encoding.json" "$@" 2> "$out/encoding.log" || failed=1
echo
echo "## one query"
timeout 120 "$python" benchmarks/gpu/latency.py --output "$out/latency.json" "$@" 2> "$out/latency.log" || failed=1
[ $failed = 0 ] || echo "something failed: see $out/*.log" >&2
exit $failed
