"""Parts of `benchmarks.inference`: each returns rows of one table."""
