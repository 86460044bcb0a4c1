"""Reading what strangers wrote: bounded, checked, and never executed.

Everything that comes from outside (files of models, data, configurations, the
text that a model writes) is read by these functions. Each either gives a value
that is what the file says, or raises a ValueError that names the place, what
was found and what was expected. The standard library alone is needed here.
"""
