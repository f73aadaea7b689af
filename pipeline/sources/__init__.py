"""From a SOURCE on the command line to the images in it."""
