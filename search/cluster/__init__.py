"""What a Ray cluster adds: its connection, its nodes, and storage that they share."""
