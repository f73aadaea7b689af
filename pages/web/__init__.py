"""What `nightcap browse` and `nightcap serve` share: the HTTP server, and what protects their pages."""
