"""Trees made by the libraries themselves, and what must hold for each."""
