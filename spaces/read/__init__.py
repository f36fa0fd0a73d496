"""Space files: found, parsed and checked key by key."""
