"""Fault injection on the real job, by kills and a faulty S3: `make faults`. Not part of the installed package."""
