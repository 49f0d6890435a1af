"""Training a network: one epoch (epoch.py), all of them (loop.py), and what a run keeps on disk."""
