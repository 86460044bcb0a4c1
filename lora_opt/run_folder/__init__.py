"""Layer 7: writes and reads the files of a run in its MODEL_DIR."""
