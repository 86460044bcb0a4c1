"""Injects faults into a small run; see tests.faults.harness."""
