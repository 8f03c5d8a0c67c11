"""What a reviewer reads: inventory, SBOM, licences, findings, policy, differences."""
