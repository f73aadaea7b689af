"use strict";
// Relative addresses, so that the page also works behind a proxy that adds a prefix.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null, deepLinking: true });
