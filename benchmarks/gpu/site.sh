# Sourced by first.sh and second.sh, in the repository's folder, with the folder for results in $1:
# the checkout as the package bksdm, and what was carried in front of what is installed.
results=${1:?usage: bash $0 RESULTS}
mkdir -p "$results"
work=${TMPDIR:-/tmp}/bksdm-gpu
site=$work/site
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ ! -e "$site/complete" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .kit/first/*.whl
    # ONNX Runtime looks for CUDA's libraries beside itself.
    nvidia=$(python3 -c 'import importlib.util as u; s = u.find_spec("nvidia"); print(list(s.submodule_search_locations)[0] if s else "")')
    [ -z "$nvidia" ] || ln -sfn "$nvidia" "$site/nvidia"
    # Records and pictures name the version.
    version=$(python3 -c 'import bksdm; print(bksdm.__version__)')
    mkdir -p "$site/bksdm_runtime-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: bksdm-runtime\nVersion: %s\n' "$version" \
        > "$site/bksdm_runtime-$version.dist-info/METADATA"
    touch "$site/complete"
fi
export PYTHONPATH=$site:$PWD

# step SECONDS NAME COMMAND…: run it for so long at most; its output goes to a file, the end of it
# here, too.
step() {
    local limit=$1 name=$2 began=$SECONDS code=0
    shift 2
    timeout "$limit" "$@" > "$results/$name.txt" 2>&1 || code=$?
    echo "== $name: code $code, $((SECONDS - began)) s"
    tail -n 24 "$results/$name.txt" | cut -c1-300
}
