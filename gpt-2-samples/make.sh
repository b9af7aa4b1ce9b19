#!/usr/bin/env bash
# Regenerates the six files of samples: make.sh [MODEL], by default demo, with the python3 on the PATH.
set -eu -o pipefail
cd "$(dirname "$0")"
model=${1:-demo}

unconditional() { # FILE FLAGS...
    python3 ../src/generate_unconditional_samples.py --model_name "$model" --seed 1 --nsamples 100 --batch_size 20 \
        "${@:2}" >"$1.part"
    mv "$1.part" "$1"
}

conditional() { # FILE FLAGS...: two samples for each of the 50 prompts, which are shown as on a terminal
    python3 ../src/interactive_conditional_samples.py --model_name "$model" --seed 1 --nsamples 2 --batch_size 2 \
        "${@:2}" <prompts.txt |
        awk 'FNR == NR { prompt[FNR] = $0; next } / SAMPLE 1 =/ { print "Model prompt >>> " prompt[++n] } { print }' \
            prompts.txt - >"$1.part"
    mv "$1.part" "$1"
}

unconditional unconditional.txt
unconditional unconditional-t07.txt --temperature 0.7
unconditional unconditional-topk40.txt --top_k 40
conditional conditional.txt
conditional conditional-t07.txt --temperature 0.7
conditional conditional-topk40.txt --top_k 40
