"""Exit codes of the command line, and a quick training of 8 bits."""

from running import QUICK

USAGE, LOCKED, STALE, DATA, DAMAGED = 2, 3, 4, 5, 6
BITS = ["train", *QUICK]
