#!/usr/bin/env bash
# Second of two commands, on the same machine: full-size networks of torch in the loop, then ONNX
# Runtime's CUDA provider; at most six minutes. Usage: bash benchmarks/gpu/second.sh RESULTS
source benchmarks/gpu/site.sh
if [ ! -e "$site/onnxruntime" ]; then
    cat .kit/first/onnxruntime.tar.xz .kit/second/onnxruntime.tar.xz > "$work/onnxruntime.tar.xz"
    python3 -m tarfile -e "$work/onnxruntime.tar.xz" "$work/unpacked" &
fi
unpacking=${!:-}
[ -e "$work/checkpoint" ] || step 60 dummy python3 -m bksdm.cli dummy small -o "$work/checkpoint"
step 150 loop python3 -m bksdm.benchmarks.gpu.loop "$work/checkpoint" "$results/loop.json" \
    --compile --seconds 150
[ -e "$site/onnxruntime" ] || { wait "$unpacking" && mv "$work"/unpacked/* "$site/"; }
step 20 exported bash -c 'until [ -e "$0/small16" ]; do sleep 1; done' "$work"
step 60 provider_tests python3 -m pytest -q -s -m gpu -p no:cacheprovider tests/gpu \
    -k 'onnxruntime or recording'
step 125 provider python3 -m bksdm.benchmarks.gpu.provider "$work/small16" \
    "$results/onnxruntime-cuda.json" --picture "$work/cpu.png" --seconds 115
