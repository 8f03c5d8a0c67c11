"""Installing and asking a bundle before it leaves, where no network is."""
