"""The command python3 -m utils.draw: a page to draw on, and what the network takes it for."""
