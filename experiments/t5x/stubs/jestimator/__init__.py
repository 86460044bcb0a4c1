"""A stub of jestimator, which is on no package index."""
