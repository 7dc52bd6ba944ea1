"""Renders the manifests with the real kubectl and checks what no schema does: that they fit together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from squeezeflow.core.config import PORTS, WORKERS, load

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
BIN = Path(sys.executable).parent
Object = dict[str, Any]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifests") / "local.yaml"
    command = [BIN / "kubectl", "kustomize", DEPLOY / "overlays" / "local"]
    out.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return out


@pytest.fixture(scope="module")
def objects(rendered: Path) -> list[Object]:
    return [item for item in yaml.safe_load_all(rendered.read_text()) if item]


def of_kind(objects: list[Object], *kinds: str) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] in kinds}


def workloads(objects: list[Object]) -> dict[str, Object]:
    return of_kind(objects, "Deployment", "StatefulSet")


def pod(workload: Object) -> Object:
    return workload["spec"]["template"]["spec"]


def environment(objects: list[Object], service: str) -> dict[str, str]:
    """Gives what the container sees, with generated config and secrets resolved."""
    container = pod(workloads(objects)[service])["containers"][0]
    env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            env |= of_kind(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"]
        else:
            env |= dict.fromkeys(of_kind(objects, "Secret")[source["secretRef"]["name"]]["data"], "a-key")
    for entry in container.get("env", []):
        env[entry["name"]] = entry.get("value", "10.0.0.1")
    return {name: re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], value) for name, value in env.items()}


def test_every_object_passes_the_strict_schema(rendered: Path) -> None:
    run = subprocess.run([BIN / "kubernetes-validate", "--strict", rendered], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (run.stdout + run.stderr).count(" passed ") == rendered.read_text().count("\nkind: ")


def test_every_service_of_the_design_is_deployed_and_has_an_image(objects: list[Object]) -> None:
    assert set(PORTS) <= set(workloads(objects))
    assert {path.name.removesuffix(".Dockerfile") for path in (DEPLOY / "images").iterdir()} == set(PORTS)


def test_everything_lies_in_one_namespace_that_enforces_restricted_pods(objects: list[Object]) -> None:
    (name,) = of_kind(objects, "Namespace")
    labels = of_kind(objects, "Namespace")[name]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {item["metadata"].get("namespace") for item in objects if item["kind"] != "Namespace"} == {name}


def test_every_service_selects_the_pods_of_exactly_one_workload_and_a_port_they_have(objects: list[Object]) -> None:
    for name, service in of_kind(objects, "Service").items():
        selector = service["spec"]["selector"].items()
        selected = [
            item
            for item in workloads(objects).values()
            if selector <= item["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert [item["metadata"]["name"] for item in selected] == [name]
        ports = {port["name"]: port["containerPort"] for port in pod(selected[0])["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_workloads_select_their_own_pods(objects: list[Object]) -> None:
    for item in workloads(objects).values():
        labels = item["spec"]["template"]["metadata"]["labels"].items()
        assert item["spec"]["selector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("service", PORTS)
def test_a_grpc_service_is_headless_and_probed_on_its_own_port(objects: list[Object], service: str) -> None:
    assert of_kind(objects, "Service")[service]["spec"]["clusterIP"] == "None"
    container = pod(workloads(objects)[service])["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == PORTS[service]


@pytest.mark.parametrize("service", PORTS)
def test_the_services_configuration_loads_from_what_the_manifest_sets(objects: list[Object], service: str) -> None:
    dockerfile = (DEPLOY / "images" / f"{service}.Dockerfile").read_text()
    image_env = dict(re.findall(r"(SQUEEZEFLOW_\w+)=(\S+)", dockerfile))
    config = load(service, image_env | environment(objects, service))
    assert config.listen == f"0.0.0.0:{PORTS[service]}"
    assert f"EXPOSE {PORTS[service]}\n" in dockerfile
    assert f'ENTRYPOINT ["python", "-m", "squeezeflow.{service}"]' in dockerfile
    assert config.store_url.startswith("s3://minio:9000/")
    assert config.store_access_key
    assert config.store_secret_key


def test_the_orchestrator_is_told_where_every_worker_is(objects: list[Object]) -> None:
    env = environment(objects, "orchestrator")
    for worker in WORKERS:
        assert env[f"SQUEEZEFLOW_{worker.upper()}"] == f"dns:///{worker}:{PORTS[worker]}"
    assert env["SQUEEZEFLOW_DATABASE"].startswith("sqlite:////state/")


def test_references_to_config_secrets_and_volumes_resolve(objects: list[Object]) -> None:
    for name, item in workloads(objects).items():
        spec = pod(item)
        claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
            for entry in container.get("env", []):
                key = entry.get("valueFrom", {}).get("secretKeyRef")
                if key:
                    assert key["key"] in of_kind(objects, "Secret")[key["name"]]["data"]


def test_every_pod_meets_restricted_pod_security(objects: list[Object]) -> None:
    for name, item in workloads(objects).items():
        spec = pod(item)
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(set(volume) & {"emptyDir", "configMap", "secret"} for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "hostPort" not in str(container["ports"])


def test_every_container_is_bounded_and_a_step_hits_its_own_limit_before_the_pods(objects: list[Object]) -> None:
    for item in workloads(objects).values():
        for container in pod(item)["containers"]:
            resources = container["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}
            assert mebibytes(resources["requests"]["memory"]) <= mebibytes(resources["limits"]["memory"])
    for worker in WORKERS:
        config = load(worker, environment(objects, worker))
        limit = mebibytes(pod(workloads(objects)[worker])["containers"][0]["resources"]["limits"]["memory"])
        assert config.step_memory_mib * config.max_concurrent_steps < limit


def test_pods_have_the_time_to_end_that_they_are_configured_to_take(objects: list[Object]) -> None:
    for service in PORTS:
        spec = pod(workloads(objects)[service])
        asleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        config = load(service, environment(objects, service))
        assert spec["terminationGracePeriodSeconds"] > asleep + config.shutdown_seconds


def mebibytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "Gi" else 1)
