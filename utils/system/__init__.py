"""What differs between systems, and what they may do to a process and its files."""
