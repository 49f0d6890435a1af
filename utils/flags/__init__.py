"""From the words of a command to the flags of an experiment; every flag itself is in opts.py."""
