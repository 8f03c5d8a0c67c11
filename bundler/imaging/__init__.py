"""Images of installed bundles, made without a container engine: OCI layouts read, unpacked, added to and written."""
