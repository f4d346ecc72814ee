"""Server of features over HTTP, and the app in the browser, also as a Space."""
