"""The closed side. The core is standard library only; ``adapters`` and ``server`` run inside the release's venv."""
