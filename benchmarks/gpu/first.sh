#!/usr/bin/env bash
# First of two commands on a machine with a GPU: all tests there, and compute-sanitizer; at most six
# minutes. What second.sh needs is exported in the meantime. Usage: bash benchmarks/gpu/first.sh RESULTS
source benchmarks/gpu/site.sh
step 20 facts bash -c 'nvidia-smi; python3 -m pip list'
setsid nohup bash -c '
    cd "$0" && run="python3 -m bksdm.cli"
    [ -e checkpoint ] || $run dummy small -o checkpoint
    [ -e small16 ] || $run export checkpoint -o small16 --dtype float16
    [ -e small32 ] || $run export checkpoint -o small32 --dtype float32
    [ -e cpu.png ] || $run generate "a lighthouse" --model small32 --steps 25 --seed 7 -o cpu.png
' "$work" > "$results/export.txt" 2>&1 < /dev/null &
step 190 tests python3 -m pytest -q -s -m gpu --maxfail 12 -p no:cacheprovider tests/gpu tests/cuda
for tool in memcheck racecheck; do
    step 65 "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 python3 -m pytest -q \
        -p no:cacheprovider tests/cuda/test_kernels.py \
        -k 'pixels or bad_value or rescaled or (float64 and 7-)'
done
ls "$work"
tail -n 3 "$results/export.txt"
