"""The command that explains one network: python3 -m utils.report (see __main__.py)."""
