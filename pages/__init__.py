"""What people look at: pages made from templates. Knows `model` and `pipeline`."""
