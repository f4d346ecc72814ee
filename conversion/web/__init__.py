"""A static page that runs a model in the browser: `page/` is what it shows, the rest what it is made of."""
