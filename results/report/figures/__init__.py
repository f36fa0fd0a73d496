"""The report's figures as plotly's JSON, drawn from its facts alone."""
