"""What any command needs and what knows nothing of RADIO: whole files, errors, ranks, seeds, tables, timing."""
