"""`nightcap serve` over HTTP: the upload page, `POST /predict`, health, metrics and the description of the API."""
