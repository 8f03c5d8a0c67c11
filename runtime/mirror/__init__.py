"""Installed releases for the other machines of a closed network: wheels as a simple index, models as a hub endpoint."""
