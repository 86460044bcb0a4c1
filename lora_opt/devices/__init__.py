"""Layer 6: arrays on many devices, and the processes that hold them as one."""
