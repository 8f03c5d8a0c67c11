"""The hostile corpus: named attacks on a bundle, each run against every command that reads one."""
