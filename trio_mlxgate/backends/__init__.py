"""Servers behind gates: what each kind speaks, whether it is well, how busy it is, and which one to ask."""
