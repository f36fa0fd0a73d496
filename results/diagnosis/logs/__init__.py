"""Other people's text logs, read into traces."""
