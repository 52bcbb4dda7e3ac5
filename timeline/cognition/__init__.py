"""How a turn is worked out: which steps it takes, and which calls they make."""
