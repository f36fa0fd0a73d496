"""The report of a study: its facts, and the page, Markdown and figures made of them."""
