"""`nightcap browse`: pages over the tables of an output, made when they are asked for."""
