"""What teachers' answers become: standardized, balanced, run online or cached."""
