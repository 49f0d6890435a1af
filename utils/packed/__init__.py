"""Packed networks: one bit per weight in the file and, where inputs are signs too, in the arithmetic."""
