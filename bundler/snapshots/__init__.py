"""Models: from folders, wheels and the Hub into the store, and what they hold."""
