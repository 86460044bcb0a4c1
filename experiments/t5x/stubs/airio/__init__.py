"""Stands for airio."""
