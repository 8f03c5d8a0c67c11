"""A bundle with one defect of every class that a security officer has to see, and one without any."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bundler.contents.compose import compose
from bundler.lock import Lock, LockedApp, LockedBuild, LockedFile, LockedModel
from bundler.selfpack import self_digests
from bundler.snapshots.modelfacts import find_facts
from bundler.store import Store
from manifests.canonical import Json
from manifests.manifest import AppEntry, Manifest, ModelEntry, bundle_order
from tests.factories import TARGET, Key, make_entry, sign_slot, write_bundle
from tests.factories_wheels import make_wheel

CREATED: Final = "2026-01-02T03:04:05Z"
ALLOW_ALL: Final[Mapping[str, Json]] = {
    "auto-map": "allow",
    "built-from-source": "allow",
    "license": "allow",
    "native-code": "allow",
    "pickle": "allow",
    "remote-code": "allow",
    "secrets": "allow",
    "undeclared": "allow",
    "unknown-license": "allow",
}
MIT: Final = (
    b"MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy of this ...\n"
)
BSD: Final = (
    b"Redistribution and use in source and binary forms, with or without modification, are permitted ...\n"
    b"Neither the name of the holder nor the names of its contributors ...\n"
)
SAFETENSORS: Final = (2).to_bytes(8, "little") + b"{}"
PICKLE: Final = pickle.dumps({"weights": [1, 2, 3]}, protocol=4)
# In two parts, so that nobody takes this file for one that holds a key.
SECRET: Final = b"# settings\n-----BEGIN OPENSSH " + b"PRIVATE KEY-----\nnot really\n"
ORIGIN: Final = f"pkg:huggingface/example/tiny@{'c' * 40}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What goes into a lock: a store, and a folder for what is put there."""

    store: Store
    folder: Path

    def put(self, path: str, content: bytes, *, origin: str = "", source: str = "folder") -> LockedFile:
        """Return a file whose content is in the store."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "content"
        file.write_bytes(content)
        digest = self.store.add_file(file)
        return LockedFile(path=path, size=digest.size, sha256=digest.sha256, origin=origin, source=source)

    def wheel(
        self,
        name: str,
        *headers: str,
        source: str = "",
        files: Mapping[str, bytes] | None = None,
        where: str = "wheels",
    ) -> LockedFile:
        """Return a wheel of version 1.0; ``files`` are added to its package."""
        members = {f"{name}/__init__.py": b"", **(files or {})}
        wheel = make_wheel(self.folder / "wheels", name, "1.0", files=members, headers=headers)
        origin = f"pkg:pypi/{name}@1.0"
        return self.put(
            f"{where}/{wheel.name}", wheel.read_bytes(), origin=origin, source=source or f"local {wheel.name}"
        )

    def model(self, files: Mapping[str, bytes], *, license_: str = "mit") -> LockedModel:
        """Return a model named ``tiny``, its facts as the builder would find them."""
        locked = tuple(
            self.put(f"models/tiny/{name}", data, origin=ORIGIN, source="hub") for name, data in files.items()
        )
        facts = find_facts({file.path.removeprefix("models/tiny/"): self.store.path(file.sha256) for file in locked})
        entry = ModelEntry(name="tiny", adapter="hcx", path="models/tiny", format="safetensors", origin=ORIGIN)
        return LockedModel(entry=entry, files=locked, license=license_, facts=facts.to_json())

    def app(self, files: Mapping[str, bytes]) -> LockedApp:
        """Return an application named ``web``."""
        locked = tuple(self.put(f"app/web/{name}", data) for name, data in files.items())
        return LockedApp(entry=AppEntry(name="web", path="app/web", origin="pkg:generic/web"), files=locked)


def clean_lock(sources: Sources, policy: Mapping[str, Json] | None = None) -> Lock:
    """Return a lock in which nothing is to be found."""
    text = {"alpha-1.0.dist-info/licenses/LICENSE": MIT}
    index = "index https://index.example/files/alpha-1.0-py3-none-any.whl"
    return Lock(
        spec_digest="5" * 64,
        sealift=dict(self_digests()),
        created=CREATED,
        sequence=7,
        name="demo",
        version="1.0.0",
        target=TARGET,
        resolver="uv 1",
        wheels=(sources.wheel("alpha", "License-Expression: MIT", files=text, source=index),),
        installer=sources.wheel("uv", "License-Expression: MIT OR Apache-2.0", where="bootstrap"),
        models=(sources.model({"config.json": b"{}\n", "model.safetensors": SAFETENSORS, "LICENSE": MIT}),),
        apps=(sources.app({"run.py": b"print('hello')\n"}),),
        policy=policy if policy is not None else {"pickle": "refuse", "remote-code": "refuse"},
    )


def defective_lock(sources: Sources, policy: Mapping[str, Json] = ALLOW_ALL) -> Lock:
    """Return a lock with one defect of every class; by default its policy allows them all."""
    built = sources.wheel("built", "License: MIT", source="built built-1.0.tar.gz")
    native = {"native/core.so": b"\x7fELF", "native-1.0.dist-info/LICENSE.txt": BSD}
    clean = clean_lock(sources, policy)
    config = json.dumps({"auto_map": {"AutoModel": "modeling_tiny.TinyModel"}}).encode()
    return replace(
        clean,
        wheels=(
            *clean.wheels,
            built,
            sources.wheel("gpl", "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)"),
            sources.wheel("mystery"),
            sources.wheel("native", files=native),
        ),
        builds=(
            LockedBuild(
                wheel=built.path.rpartition("/")[2],
                wheel_sha256=built.sha256,
                source="built-1.0.tar.gz",
                source_sha256="b" * 64,
            ),
        ),
        models=(
            sources.model(
                {
                    "config.json": config,
                    "model.safetensors": PICKLE,
                    "modeling_tiny.py": b"import os\n",
                    "LICENSE": MIT,
                }
            ),
        ),
        apps=(sources.app({"run.py": b"print('hello')\n", "settings.ini": SECRET}),),
    )


def make_bundle_of(
    lock: Lock,
    store: Store,
    tar: Path,
    *keys: Key,
    policy: Mapping[str, Json] | None = None,
    more: Mapping[str, bytes] | None = None,
) -> tuple[Path, Manifest]:
    """Write the bundle of a lock, whose policy ``policy`` replaces once the builder's checks are passed.

    ``more`` are files that nobody declared: path -> content.
    """
    composition = compose(lock, store)
    manifest = composition.manifest
    extra = [make_entry(path, data) for path, data in (more or {}).items()]
    manifest = replace(
        manifest,
        policy=manifest.policy if policy is None else policy,
        files=tuple(sorted([*manifest.files, *extra], key=bundle_order)),
    )
    contents = {
        entry.path: (more or {}).get(entry.path)
        or composition.generated.get(entry.path)
        or store.path(entry.sha256).read_bytes()
        for entry in manifest.files
    }
    write_bundle(tar, manifest, contents, sign_slot(manifest.encode(), *keys))
    return tar, manifest
