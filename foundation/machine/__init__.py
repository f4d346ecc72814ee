"""What a command runs on: hardware, time and energy."""
