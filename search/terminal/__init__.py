"""What a person sees and how they interrupt: the console, the live screen, the summary, signals."""
