"""The page of all results, `benchmarks/RESULTS.md`, and its figures."""
