"""Other model servers on the same models, asked by the same callers."""
