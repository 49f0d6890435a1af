"""Compiled code: the search of the CPU, and the one builder and cache of all C++ (compiler.py)."""
