"""The command that compares methods: python3 -m utils.compare (see __main__.py)."""

PROGRAM = 'utils.compare'
