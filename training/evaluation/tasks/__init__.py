"""What is measured: one file for each group of tasks, and the table that names them."""
