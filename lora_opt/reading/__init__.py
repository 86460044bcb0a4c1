"""Reads untrusted input: bounded, checked, and never executed.

Everything that comes from outside (model files, data, configurations, the text
that a model writes) is read by these functions. Each either returns the value
that the file states, or raises a ValueError that names the place, what was
found and what was expected. Only the standard library is needed here.
"""
