"""The command that measures speed and memory: python3 -m utils.bench (see __main__.py)."""
