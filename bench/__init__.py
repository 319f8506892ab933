"""Side-by-side benchmarks; each folder holds its script, its report and the figures behind it."""
