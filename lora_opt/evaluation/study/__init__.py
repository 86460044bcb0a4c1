"""Many runs compared: their results in small rows, ranked, drawn, reported."""
