#!/usr/bin/env bash
# Remove caches of Python, of the tests and of the linter; never logs, checkpoints, data or .venv.
cd "$(dirname "$0")" || exit 1
find . \( -name .venv -o -name .git -o -name logs -o -name data \) -prune -o \
    \( -name __pycache__ -o -name .pytest_cache -o -name .ruff_cache -o -name .hypothesis \) -prune -exec rm -rf {} +
