"""Models to measure: RADIO folders, teachers and baselines, behind one protocol."""
