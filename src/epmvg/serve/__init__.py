"""HTTP server of a trained run, with a web page."""
