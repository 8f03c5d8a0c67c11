"""The Kustomize base, read as YAML: every field that closes something, and the spec's own numbers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bundler.imaging.image import Image
from bundler.imaging.kustomize import check_kustomize_place, repository_of, resource_name, write_kustomize
from manifests.errors import UsageError
from manifests.manifest import HostNeeds, ModelEntry, Target
from tests.factories import SMALL_FILES, make_manifest

MODEL = ModelEntry(name="tiny", adapter="bge-m3", path="models/tiny", format="safetensors", origin="dir:tiny")
DIGEST, MANIFEST_DIGEST = f"sha256:{'a' * 64}", "b" * 64
PREFIX = "/opt/sealift"


def write(folder: Path, *, models: tuple[ModelEntry, ...] = (MODEL,), **overrides: object) -> dict[str, Any]:
    """Write a base; return its documents by path."""
    manifest = make_manifest(SMALL_FILES, executable=(), models=models, **overrides)
    image = Image(
        output=folder / "image",
        tag="registry.site:5000/team/demo:1.0.0",
        digest=DIGEST,
        manifest=manifest,
        manifest_digest=MANIFEST_DIGEST,
        base_layers=1,
        layers=(),
    )
    written = write_kustomize(folder / "k8s", image, PREFIX)
    assert sorted(path for path in (folder / "k8s").rglob("*") if path.is_file()) == sorted(written)
    return {path.relative_to(folder / "k8s").as_posix(): yaml.safe_load(path.read_text()) for path in written}


def pod(documents: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = documents["deployment.yaml"]["spec"]["template"]["spec"]
    return spec


def test_kustomization_lists_what_is_there(tmp_path: Path) -> None:
    documents = write(tmp_path)
    assert documents["kustomization.yaml"] == {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["deployment.yaml", "service.yaml", "networkpolicy.yaml"],
        "images": [{"name": "demo", "newName": "registry.site:5000/team/demo", "digest": DIGEST}],
    }
    assert "# components:\n#   - models-volume\n" in (tmp_path / "k8s" / "kustomization.yaml").read_text()


def test_pods_have_no_rights(tmp_path: Path) -> None:
    spec = pod(write(tmp_path))
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["volumes"] == [{"name": "var", "emptyDir": {}}]
    (server,) = spec["containers"]
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert server["volumeMounts"] == [{"name": "var", "mountPath": "/opt/sealift/var"}]
    assert (server["image"], server["ports"]) == ("demo", [{"name": "http", "containerPort": 8000}])
    assert "command" not in server  # the entrypoint verifies first


def test_probes_ask_what_the_server_answers(tmp_path: Path) -> None:
    (server,) = pod(write(tmp_path))["containers"]
    ready, alive = {"path": "/ready", "port": "http"}, {"path": "/health", "port": "http"}
    asked = {name: server[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {
        "startupProbe": {"httpGet": ready, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 360},
        "readinessProbe": {"httpGet": ready, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {"httpGet": alive, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }


def test_nothing_goes_out_and_only_the_api_in(tmp_path: Path) -> None:
    documents = write(tmp_path)
    labels = {"app.kubernetes.io/name": "demo"}
    assert documents["networkpolicy.yaml"]["spec"] == {
        "podSelector": {"matchLabels": labels},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"protocol": "TCP", "port": 8000}]}],
        "egress": [],
    }
    assert documents["service.yaml"]["spec"] == {
        "selector": labels,
        "ports": [{"name": "http", "port": 8000, "targetPort": "http"}],
    }
    deployment = documents["deployment.yaml"]["spec"]
    assert deployment["selector"]["matchLabels"] == labels
    assert deployment["template"]["metadata"]["labels"] == labels
    assert deployment["template"]["metadata"]["annotations"] == {"io.sealift.manifest.digest": MANIFEST_DIGEST}


def test_resources_are_the_spec_s(tmp_path: Path) -> None:
    (plain,) = pod(write(tmp_path))["containers"]
    assert "resources" not in plain
    least, most = HostNeeds(cpu_cores=4, memory=8 << 30), HostNeeds(cpu_cores=8, memory=16 << 30)
    (server,) = pod(write(tmp_path / "needs", minimum=least, recommended=most))["containers"]
    assert server["resources"] == {
        "requests": {"cpu": "4", "memory": "8589934592"},
        "limits": {"memory": "17179869184"},
    }
    cuda = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cuda-12.8")
    (server,) = pod(write(tmp_path / "cuda", target=cuda))["containers"]
    assert server["resources"] == {"limits": {"nvidia.com/gpu": "1"}}


def test_models_from_a_volume_are_verified_first(tmp_path: Path) -> None:
    documents = write(tmp_path)
    assert documents["models-volume/kustomization.yaml"] == {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": [{"path": "patch.yaml"}],
    }
    spec = documents["models-volume/patch.yaml"]["spec"]["template"]["spec"]
    models = "/opt/sealift/releases/1.0.0-bbbbbbbbbbbb/models"
    mounts = [
        {"name": "var", "mountPath": "/opt/sealift/var"},
        {"name": "models", "mountPath": models, "subPath": "models", "readOnly": True},
    ]
    claim = {"claimName": "demo-models", "readOnly": True}
    assert spec["volumes"] == [{"name": "models", "persistentVolumeClaim": claim}]
    assert spec["containers"] == [{"name": "server", "volumeMounts": mounts}]
    (check,) = spec["initContainers"]
    kit = "/opt/sealift/kit"
    assert check["command"] == [
        *("/opt/sealift/current/venv/bin/python", "-I", "-S", f"{kit}/runtime.pyz", "verify"),
        *("--prefix", "/opt/sealift", "--trust", f"{kit}/allowed_signers"),
    ]
    assert (check["image"], check["volumeMounts"]) == ("demo", mounts)
    (server,) = pod(documents)["containers"]
    assert check["securityContext"] == server["securityContext"]


def test_a_bundle_without_models_has_no_component(tmp_path: Path) -> None:
    documents = write(tmp_path, models=())
    assert sorted(documents) == ["deployment.yaml", "kustomization.yaml", "networkpolicy.yaml", "service.yaml"]
    assert "models-volume" not in (tmp_path / "k8s" / "kustomization.yaml").read_text()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "k8s").mkdir()
    check_kustomize_place(tmp_path / "k8s")
    (tmp_path / "k8s" / "mine").touch()
    with pytest.raises(UsageError) as caught:
        check_kustomize_place(tmp_path / "k8s")
    assert caught.value.message == f"{tmp_path / 'k8s'}: is there already"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("demo", "demo"), ("rag.trace_2", "rag-trace-2"), ("3d", "sealift-3d"), ("a" * 63, "a" * 50)],
)
def test_names_as_kubernetes_takes_them(name: str, expected: str) -> None:
    assert resource_name(name) == expected


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("demo:1", "demo"),
        ("demo", "demo"),
        ("host:5000/demo", "host:5000/demo"),
        ("host:5000/demo:1", "host:5000/demo"),
    ],
)
def test_an_image_s_name_without_its_tag(tag: str, expected: str) -> None:
    assert repository_of(tag) == expected
