"""Decide: pure, synchronous objects. No trio, no clock, no I/O, no randomness; ``now`` is an argument."""
