"""Official SAM weights to ours."""
