#!/usr/bin/env bash
# Build Dockerfile.cpu and Dockerfile.gpu without a Docker engine and without TensorFlow's images, and sample inside.
#
#     make test PYTHON=python3.6 && tests/docker.sh .venv-3.6-tensorflow-1.12.0
#
# The base image is replaced by one with the Python of the virtual environment (which needs its own prefix, as pyenv's
# Pythons have), the same TensorFlow, and the wheels of requirements.txt, so that the build needs no network. The model
# is that of tests/helpers/tiny.py, downloaded by download_model.py from a server on this machine.
# For maintainers, on Linux as root: needs buildah (apt-get install buildah), 5 GB in TMPDIR and two minutes.
set -eu -o pipefail
python=$(realpath "${1:?'usage: tests/docker.sh VIRTUAL_ENVIRONMENT'}")/bin/python
cd "$(dirname "$0")/.."
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
tensorflow=$("$python" -m pip freeze 2>/dev/null | grep -i '^tensorflow==')

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server"
    buildah rm --all >/dev/null 2>&1 || true  # rm -rf could not remove a mounted container
    rm -rf "$work"
}
trap finish EXIT

buildah() {
    command buildah --root "$work/storage" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"
}

inside() { # IMAGE COMMAND...: print what the command prints in a new container of the image
    local container
    container=$(buildah from "$1")
    # Into a file, because buildah's chroot isolation ends with the command, and output not copied by then is lost.
    buildah run --isolation chroot "$container" -- sh -c 'exec "$@" >/tmp/printed' sh "${@:2}"
    cat "$(buildah mount "$container")/tmp/printed"
    buildah rm "$container" >/dev/null
}

expect() { # NAME GOT EXPECTED
    [ "$2" = "$3" ] || { printf 'not ok: %s: got %s, expected %s\n' "$1" "$2" "$3"; exit 1; }
    printf 'ok: %s: %s\n' "$1" "$2"
}

base_image() { # build the image localhost/base
    local root=$work/root container
    mkdir -p "$root/wheels" "$root/tmp" "$root$prefix"
    cp -a "$prefix/." "$root$prefix"
    # regex is built from source, as in TensorFlow 1.12's image, whose pip 18.1 does not know current wheels.
    "$python" -m pip wheel --quiet --no-binary regex --wheel-dir "$root/wheels" -r requirements.txt "$tensorflow"
    "$python" -m pip install --quiet --no-index --find-links "$root/wheels" --ignore-installed \
        --prefix "$root$prefix" "$tensorflow"
    { find "$root$prefix" -type f \( -name '*.so*' -o -path '*/bin/python3*' \) -exec ldd {} + || true; ldd /bin/sh; } \
        2>/dev/null | grep -o '/[^ :]*' | grep -v "$prefix/" | sort -u | xargs cp -L --parents -t "$root" /bin/sh
    cp -R --parents /usr/lib/locale/C.* "$root"  # not part of every libc
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$root" /
    buildah config --env "PATH=$prefix/bin:/bin" --env PIP_DISABLE_PIP_VERSION_CHECK=1 --env PIP_NO_INDEX=1 \
        --env PIP_FIND_LINKS=/wheels "$container"
    buildah commit --quiet "$container" localhost/base
    buildah rm "$container"
    rm -rf "$root"
}

build() { # KIND: build the image gpt-2-KIND from Dockerfile.KIND
    buildah bud --isolation chroot --layers --quiet --tag "localhost/gpt-2-$1" --file "$work/context/Dockerfile.$1" \
        --build-arg BASE=localhost/base --build-arg MODEL=tiny --build-arg "GPT2_BASE_URL=$url" \
        "$work/context" >/dev/null
}

printed_inside() { # IMAGE CODE: what Python prints in a new container of the image
    inside "$1" python3 -c "print($2)"
}

downloads() { grep -c '"GET ' "$work/server.log" || true; }

mkdir -p "$work/served" "$work/context"
"$python" tests/helpers/tiny.py "$work/served/tiny"
(cd "$work/served" && exec "$python" -u -m http.server --bind 127.0.0.1 0) >"$work/server.log" 2>&1 &
server=$!
base_image >/dev/null
url=http://127.0.0.1:$(sed -n 's/.* port \([0-9]*\).*/\1/p' "$work/server.log")
cp -R .dockerignore Dockerfile.* requirements.txt download_model.py src "$work/context"
inside localhost/base python3 -m pip freeze >"$work/before"
expect 'base image' "$(inside localhost/base python3 --version), $(grep -i ^tensorflow= "$work/before")" \
    "$("$python" --version), $tensorflow"

for kind in cpu gpu; do
    image=localhost/gpt-2-$kind
    before=$(downloads)
    build "$kind"
    expect "$kind: files of the model downloaded by the build" "$(($(downloads) - before))" 7
    inside "$image" python3 -m pip freeze >"$work/after"
    expect "$kind: packages of the base image that pip changed" \
        "$(grep -c -v -x -F -f "$work/after" "$work/before" || true)" 0
    expect "$kind: encoding of the terminal" "$(printed_inside "$image" '__import__("sys").stdout.encoding.upper()')" UTF-8
    inside "$image" python3 src/generate_unconditional_samples.py --model_name tiny --nsamples 3 --batch_size 2 \
        >"$work/samples"
    expect "$kind: unconditional samples of 3" "$(grep -c ' SAMPLE [0-9]* ' "$work/samples" || true)" 3
    mapfile -t default_command < <(
        buildah inspect --type image --format '{{range .OCIv1.Config.Cmd}}{{println .}}{{end}}' "$image" | sed '/^$/d')
    echo 'Hello' | inside "$image" "${default_command[@]}" >"$work/samples"
    expect "$kind: samples of the default command for 1 prompt" "$(grep -c ' SAMPLE [0-9]* ' "$work/samples" || true)" 1

    before=$(downloads)
    echo '# edited' >>"$work/context/src/model.py"
    build "$kind"
    expect "$kind: end of src/model.py in the new image" \
        "$(printed_inside "$image" 'open("src/model.py").read()[-9:].strip()')" '# edited'
    expect "$kind: files of the model downloaded by the build after the edit" "$(($(downloads) - before))" 0
done
variables=$(buildah inspect --type image --format '{{.OCIv1.Config.Env}} {{.OCIv1.Config.Labels}}' localhost/gpt-2-gpu)
for word in NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    com.nvidia.volumes.needed:nvidia_driver; do
    case $variables in
    *"$word"*) echo "ok: gpu: $word" ;;
    *) echo "not ok: gpu: no $word in $variables"; exit 1 ;;
    esac
done
