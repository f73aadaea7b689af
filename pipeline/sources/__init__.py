"""What a SOURCE on the command line means: which images there are."""
