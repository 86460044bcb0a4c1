"""Stands for jestimator, which is on no package index."""
