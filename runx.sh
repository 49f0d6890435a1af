#!/usr/bin/env bash
# bash runx.sh [help]                       this help, and the experiments
# bash runx.sh demo                         a binary Sketch-A-Net on doodles, in about 2 minutes on 2 cores
# bash runx.sh test [flags of pytest]       the tests and the linter; -m soak: thousands of damaged files
# bash runx.sh compare [flags]              networks of all methods side by side (python3 -m utils.compare)
# bash runx.sh EXPERIMENT [flags of main.py, which win over those of the experiment]
#     --resume=auto                         resume it where it stopped, or start it
#
# DATA (default: data) is the folder with one folder per dataset, as datasets.prepare makes them.
# Python is python3 where that has what requirements.txt asks for, or else .venv, made from it.
set -euo pipefail
cd "$(dirname "$0")"
DATA=${DATA:-data}

# The published settings: Adam, no weight decay, the learning rate halved every 50 epochs.
COMMON='--workers=8 --testbatchsize=32 --learningratescheduler=decayschedular --decayinterval=50
        --decaylevel=2 --optimType=adam --nesterov --maxlr=0.001 --minlr=0.00001 --weightDecay=0'

# model          binarized  batch  datasets:epochs
EXPERIMENTS='sketchanet       real   256  tuberlin:600 sketchyrecognition:400
             sketchanetwbin   2-7    256  tuberlin:600 sketchyrecognition:400
             sketchanetfbin   2-7    256  tuberlin:600 sketchyrecognition:400
             resnet18         real    96  tuberlin:600 sketchyrecognition:167
             resnetwbin18     2-100   96  tuberlin:600 sketchyrecognition:167 imagenet12:60
             resnetfbin18     2-100   96  tuberlin:547 sketchyrecognition:400
             squeezenet       real   128  tuberlin:600 sketchyrecognition:226
             squeezenetwbin   2-25   128  tuberlin:600 sketchyrecognition:226 imagenet12:60
             squeezenetfbin   2-25   128  tuberlin:600 sketchyrecognition:226
             googlenet        real    96  tuberlin:85  sketchyrecognition:85
             googlenetwbin    2-100   96  tuberlin:85  sketchyrecognition:85
             googlenetfbin    2-100   96  tuberlin:69  sketchyrecognition:21
             alexnetwbin      2-7    256  imagenet12:60
             bincifar         2-7    256  cifar10:300  cifar100:300
             bincifarfbin     2-7    256  cifar10:300  cifar100:300'

# Print the name and the flags of every experiment, one a line.
experiments() {
    local model range batch datasets run binary crops
    while read -r model range batch datasets; do
        binary="--binaryWeight --binStart=${range%-*} --binEnd=${range#*-}"
        [ "$range" = real ] && binary=''
        for run in $datasets; do
            case $run in tuberlin:*|sketchyrecognition:*) crops=--tenCrop ;; *) crops='' ;; esac
            printf '%-33s --dataset=%s --model_def=%s --epochs=%s --batch-size=%s %s %s\n' \
                "$model-${run%:*}" "${run%:*}" "$model" "${run#*:}" "$batch" "$crops" "$binary"
        done
    done <<< "$EXPERIMENTS"
}

# Python code: fail without all of requirements.txt, and print which packages have other versions.
CHECK='
import re, sys
from importlib import metadata

def numbers(version):
    return [int(part) for part in re.findall("[0-9]+", version.partition("+")[0])]

missing, other = sys.version_info < (3, 11), []
for name, relation, wanted in re.findall("^([^=>#]+)(==|>=)(.+)$", open("requirements.txt").read(), re.M):
    try:
        has = metadata.version(name)
    except metadata.PackageNotFoundError:
        missing = True
    else:
        equal, more = numbers(has) == numbers(wanted), numbers(has) > numbers(wanted)
        if not (equal or (more and relation == ">=")):
            other.append(f"{name} {has}, not {relation}{wanted}")
print(*other, sep="; ")
sys.exit(bool(missing or other))'
RECENT='import sys; sys.exit(sys.version_info < (3, 11))'

# Set PYTHON to a python3 that has the packages, or else to that of .venv, made or completed here.
setup() {
    local others
    PYTHON=python3
    others=$(python3 -c "$CHECK" 2>/dev/null) && return
    [ -n "$others" ] && echo "runx.sh: python3 has $others: using .venv" >&2
    PYTHON=.venv/bin/python
    others=$("$PYTHON" -c "$CHECK" 2>/dev/null) && return
    if ! "$PYTHON" -c "$RECENT" 2>/dev/null; then
        python3 -c "$RECENT" 2>/dev/null || {
            echo 'runx.sh: Python 3.11 or newer is needed, as python3' >&2; exit 1; }
        python3 -m venv --clear .venv
    fi
    "$PYTHON" -c 'import pip' 2>/dev/null || "$PYTHON" -m ensurepip >/dev/null
    echo "runx.sh: installing requirements.txt into .venv, once${others:+ (it has $others)}" >&2
    "$PYTHON" -m pip install --quiet --no-compile -r requirements.txt
    # Compile on all cores, as pip does not; this fails where a package has templates, not Python.
    "$PYTHON" -m compileall -qq -j 0 .venv/lib || true
}

case ${1:-} in
    '' | help | --help | -h)
        sed -n '2,/^set/s/^# \{0,1\}//p' runx.sh; echo
        experiments ;;
    demo)
        shift; setup
        name=demo-$(date +%Y%m%d-%H%M%S)
        "$PYTHON" main.py --binaryWeight --inpsize=81 --epochs=20 --maxlr=0.003 --learningratescheduler=cosine --minCrop=0.7 --name="$name" "$@"
        [ ! -f "logs/$name/best.pth.tar" ] ||
            echo "draw, and see what it takes your drawing for: $PYTHON -m utils.draw logs/$name/best.pth.tar" ;;
    compare)
        shift; setup
        exec "$PYTHON" -m utils.compare "$@" ;;
    test)
        shift; setup
        "$PYTHON" -m ruff check --quiet .
        exec "$PYTHON" -m pytest -q -n auto --maxprocesses=4 --dist worksteal tests "$@" ;;
    *)
        name=$1; shift
        flags=$(experiments | grep "^$name ") || {
            echo "runx.sh: there is no experiment '$name'; bash runx.sh lists them" >&2; exit 2; }
        setup
        # shellcheck disable=SC2086  # flags are words
        exec "$PYTHON" main.py ${flags#* } $COMMON --data_dir="$DATA" --name="$name" "$@" ;;
esac
