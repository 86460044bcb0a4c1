"""Compares many runs: collects their results, ranks, draws and reports them."""
