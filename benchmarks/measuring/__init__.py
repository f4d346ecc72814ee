"""What all benchmarks share: calls that take turns, memory of new processes, the machine's limits, files of results."""
