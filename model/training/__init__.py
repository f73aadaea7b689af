"""Training of captioners in stages; a run can be resumed after every epoch."""
