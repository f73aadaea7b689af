"""The captioner as a service inside one process: uploads in, answers out. `pages.serving` puts HTTP around it."""
