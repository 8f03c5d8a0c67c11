"""Everything else that travels: applications, rendered files, and the manifest that lists it all."""
