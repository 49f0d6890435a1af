#!/usr/bin/env bash
# Removes caches and compiled leftovers; never logs, checkpoints, data or the .venv.
cd "$(dirname "$0")" || exit 1
find . \( -name .venv -o -name .git -o -name logs -o -name data \) -prune -o \
    \( -name __pycache__ -o -name .pytest_cache -o -name .hypothesis \) -prune -exec rm -rf {} +
