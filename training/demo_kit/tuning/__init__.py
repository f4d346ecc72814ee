"""Ways of tuning compared on the demo's student and labeled data: what is compared, the runs, their raw results."""
