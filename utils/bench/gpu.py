def bench(options):
    """x"""
    return []
