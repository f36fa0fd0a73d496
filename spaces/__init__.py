"""Search spaces: TOML files read into checked values."""
