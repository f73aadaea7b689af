"""Training a captioner, stage by stage, resumable at every epoch."""
