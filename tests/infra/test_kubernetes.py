"""infra/kubernetes as it is rendered: the golden files, and what must hold whatever they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import (
    IMAGE,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Manifest,
    containers,
    golden,
    job,
    job_variables,
    parse,
    pods,
    template,
)
from manifests import render as kustomize

from flows import prefect_leases
from flows.cluster_deployments import with_image, with_job_variables
from perennial import cluster_accounts
from perennial.errors import UsageError

pytestmark = [pytest.mark.infra, pytest.mark.usefixtures("prefect_kubernetes")]

TERRAFORM = ROOT / "infra" / "terraform"
# Writes below the folder of kubelet, which is root's.
ROOTS_OWN = "DaemonSet/nvidia-device-plugin"
WITHOUT_A_ROLE = {"monitoring", "prefect-server"}


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kubectl: None) -> list[Manifest]:
    """The manifests of an overlay, and the jobs of flow runs."""
    manifests = parse(kustomize(request.param, tmp_path_factory.mktemp("rendered")))
    return [*manifests, *(named(job(flow), flow) for flow in ("retrain", "score"))]


def named(manifest: Manifest, name: str) -> Manifest:
    """A job with a name; Kubernetes makes one of generateName."""
    return {**manifest, "metadata": {**manifest["metadata"], "name": f"run-{name}"}}


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def terraform(name: str) -> str:
    return (TERRAFORM / name).read_text()


def test_what_is_rendered_is_what_was_last_looked_at(kubectl: None) -> None:
    for file, content in golden():
        differs = f"{file.name} differs; if it should: python tests/infra/manifests.py, and read git diff"
        assert list(yaml.safe_load_all(file.read_text())) == list(yaml.safe_load_all(content)), differs


def test_a_copy_of_the_follower_for_another_pipeline_has_the_same_image(
    kubectl: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(KUBERNETES, changed)
    follower = (changed / "base" / "follower.yaml").read_text()
    (changed / "base" / "follower-kiosks.yaml").write_text(follower.replace("flights", "kiosks"))
    listed = (changed / "base" / "kustomization.yaml").read_text()
    (changed / "base" / "kustomization.yaml").write_text(
        listed.replace("  - follower.yaml", "  - follower.yaml\n  - follower-kiosks.yaml")
    )
    monkeypatch.setattr("manifests.KUBERNETES", changed)
    rendered = of_kind(parse(kustomize("small", tmp_path)), "Deployment")
    images = {
        name: rendered[f"follower-{name}"]["spec"]["template"]["spec"]["containers"] for name in ("flights", "kiosks")
    }
    assert {name: [one["image"] for one in containers] for name, containers in images.items()} == {
        "flights": [IMAGE],
        "kiosks": [IMAGE],
    }


def test_kubernetes_of_the_clusters_version_takes_every_manifest(
    rendered: list[Manifest], tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    version = re.search(r'variable "kubernetes_version".*?default\s*= "([\d.]+)"', terraform("variables.tf"), re.DOTALL)
    assert version
    strict = json.loads(json.dumps(rendered))
    for manifest in strict:
        if manifest["metadata"]["name"].startswith("run-"):
            # Prefect insists on these two in a place where Kubernetes does not know them, and drops them.
            for unknown in ("completions", "parallelism"):
                del manifest["spec"]["template"]["spec"][unknown]
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(strict))
    command = [tools("manifests", "kubernetes-validate"), "--strict", "-k", version[1], file]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = ran.stdout + ran.stderr
    assert told.count(" passed for resource ") == len(rendered)
    assert "WARN" not in told  # of a kind without a schema it would only warn


def test_no_container_is_root_or_can_become_it_or_writes_where_it_should_not(rendered: list[Manifest]) -> None:
    seen = 0
    for name, pod in pods(rendered):
        for container in containers(pod):
            seen += 1
            both = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert both["allowPrivilegeEscalation"] is False, name
            assert both["readOnlyRootFilesystem"] is True, name
            assert both["capabilities"] == {"drop": ["ALL"]}, name
            assert both["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert not container.get("privileged"), name
            if name != ROOTS_OWN:
                assert both["runAsNonRoot"] is True, name
                assert both["runAsUser"] > 0, name
    assert seen == 15


def test_disks_of_pods_have_the_accounts_key(rendered: list[Manifest]) -> None:
    classes = of_kind(rendered, "StorageClass")
    encrypted = {name for name, one in classes.items() if one["parameters"]["encrypted"] == "true"}
    assert all(one["parameters"]["kmsKeyId"].startswith("arn:aws:kms:") for one in classes.values())
    used = {claim["spec"].get("storageClassName") for claim in of_kind(rendered, "PersistentVolumeClaim").values()}
    assert used == encrypted == {"perennial"}


def test_only_the_device_plugin_touches_a_node(rendered: list[Manifest]) -> None:
    touching = {name for name, pod in pods(rendered) if any("hostPath" in v for v in pod.get("volumes", []))}
    assert touching == {ROOTS_OWN}
    assert not [
        name for name, pod in pods(rendered) if pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC")
    ]


def test_every_container_says_what_it_needs_and_how_much_memory_it_gets_at_most(rendered: list[Manifest]) -> None:
    for name, pod in pods(rendered):
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name


def test_every_image_is_of_a_certain_version(rendered: list[Manifest]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for _, pod in pods(rendered) for container in containers(pod)}
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images), images
    ours = {image for image in images if "/perennial/" in image}
    assert ours == {IMAGE.replace("worker:0.1.0", f"{name}:{version}") for name in ("worker", "service")}


def test_no_pod_gets_variables_that_kubernetes_makes_of_service_names(rendered: list[Manifest]) -> None:
    # Prefect would read PREFECT_SERVER_PORT=tcp://... as a setting of its own.
    assert [name for name, pod in pods(rendered) if pod.get("enableServiceLinks", True)] == []


def test_what_writes_its_state_or_temporary_files_has_a_place_for_them(rendered: list[Manifest]) -> None:
    for name, pod in pods(rendered):
        for container in containers(pod):
            mounted = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
            homes = {
                e["value"] for e in container.get("env", []) if e["name"] in ("PERENNIAL_HOME", "PREFECT_HOME", "HOME")
            }
            for home in homes:
                assert any(home == place or home.startswith(f"{place}/") for place in mounted), (name, home)
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in {volume["name"] for volume in pod["volumes"]}, name


def test_service_accounts_are_those_that_terraform_gives_roles(rendered: list[Manifest]) -> None:
    block = re.search(r"^  workloads = \{\n(.*?)^  \}", terraform("iam.tf"), re.MULTILINE | re.DOTALL)
    assert block
    namespaces = {"local.namespace": "perennial", '"kube-system"': "kube-system"}
    with_roles = {
        (namespaces[where], name)
        for name, where in re.findall(r"^    ([\w-]+) = \{\n\s+namespace = (\S+)", block[1], re.MULTILINE)
    }
    assert len(with_roles) >= 5
    ours = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in rendered if m["kind"] == "ServiceAccount"}
    assert ours == with_roles | {("perennial", name) for name in WITHOUT_A_ROLE}
    used = {pod.get("serviceAccountName") for name, pod in pods(rendered) if name != ROOTS_OWN}
    assert used == {name for _, name in ours}


def test_only_pods_that_ask_the_kubernetes_api_get_its_token(rendered: list[Manifest]) -> None:
    accounts = of_kind(rendered, "ServiceAccount")

    def has_token(pod: Manifest) -> bool:
        of_account = accounts.get(pod.get("serviceAccountName", ""), {}).get("automountServiceAccountToken", True)
        return bool(pod.get("automountServiceAccountToken", of_account))

    asking = {"Deployment/prefect-worker", "Job/accounts", "Deployment/cluster-autoscaler"}
    assert {name for name, pod in pods(rendered) if has_token(pod)} == asking


def taints() -> dict[str, tuple[str, str]]:
    """Key -> (value, effect as Kubernetes writes it), as gpu_spot.tf says it."""
    text = terraform("gpu_spot.tf")
    effects = dict(re.findall(r"^\s+(NO_\w+)\s+= \"(\w+)\"", text, re.MULTILINE))
    found = re.findall(r'_taint\s*= \{ key = "(.+?)", value = "(.+?)", effect = "(\w+)" \}', text)
    return {key: (value, effects[effect]) for key, value, effect in found}


def bears(tolerations: list[Manifest], key: str, value: str, effect: str) -> bool:
    """Kubernetes' rule: effect and key equal, and the value too unless the operator is Exists."""
    return any(
        t.get("effect", effect) == effect
        and t.get("key", key) == key
        and (t.get("operator", "Equal") == "Exists" or t.get("value") == value)
        for t in tolerations
    )


def test_a_retrain_may_be_on_both_gpu_groups_and_would_rather_be_on_spot() -> None:
    assert len(taints()) == 2
    pod = job("retrain")["spec"]["template"]["spec"]
    assert all(bears(pod["tolerations"], key, *rest) for key, rest in taints().items())
    text = terraform("gpu_spot.tf")
    (shared,) = re.findall(r"^  gpu_labels = (\{.*\})", text, re.MULTILINE)
    labels = dict(
        re.findall(
            r"^    (gpu-[\w-]+) = \{\n.*\n\s+labels\s+= merge\(local\.gpu_labels, (\{.*\})\)", text, re.MULTILINE
        )
    )
    groups = {name: dict(re.findall(r'"([^"]+)" = "([^"]+)"', shared + told)) for name, told in labels.items()}
    assert set(groups) == {"gpu-spot", "gpu-on-demand"}
    for group in groups.values():
        assert pod["nodeSelector"].items() <= group.items()
    (preferred,) = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = preferred["preference"]["matchExpressions"]
    assert [name for name, told in groups.items() if told[expression["key"]] in expression["values"]] == ["gpu-spot"]
    # A rule that must hold would leave the run waiting while there is no spot.
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in pod["affinity"]["nodeAffinity"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_other_runs_keep_off_gpu_nodes() -> None:
    pod = job("score")["spec"]["template"]["spec"]
    assert not any(bears(pod["tolerations"], key, *rest) for key, rest in taints().items())
    (system,) = re.findall(r"labels\s+= \{ \"(.+?)\" = \"(.+?)\" \}", terraform("nodes.tf"))
    assert pod["nodeSelector"] == dict([system])
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 0


@pytest.mark.parametrize("flow", ["retrain", "score"])
def test_work_is_never_doubled_by_kubernetes(flow: str) -> None:
    manifest = job(flow)
    spec, pod = manifest["spec"], manifest["spec"]["template"]["spec"]
    # One attempt, no second pod beside one that still ends, and whoever is asked to end hands the run back to Prefect.
    assert (spec["backoffLimit"], spec["podReplacementPolicy"], pod["restartPolicy"]) == (0, "Failed", "Never")
    assert "podFailurePolicy" not in spec  # ignoring disruptions would make a second pod of the same run
    environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert 30 < pod["terminationGracePeriodSeconds"] < 120  # EC2's notice
    # One that hangs does not hold a node, which nothing else makes free, for ever.
    assert spec["activeDeadlineSeconds"] == {"retrain": 24, "score": 6}[flow] * 3600
    assert spec["ttlSecondsAfterFinished"] > 0


def test_the_autoscaler_is_of_the_clusters_version_and_takes_spot_first(rendered: list[Manifest]) -> None:
    version = re.search(r'default\s*= "(1\.\d+)"', terraform("variables.tf"))
    (container,) = of_kind(rendered, "Deployment")["cluster-autoscaler"]["spec"]["template"]["spec"]["containers"]
    assert version
    assert f":v{version[1]}." in container["image"]
    assert "--expander=priority" in container["command"]
    data = of_kind(rendered, "ConfigMap")["cluster-autoscaler-priority-expander"]["data"]["priorities"]
    priorities = yaml.safe_load(data)

    def priority(group: str) -> int:
        return max(value for value, names in priorities.items() if any(re.fullmatch(name, group) for name in names))

    groups = {name: f"eks-perennial-{name}-1ac9b1f2-0000" for name in ("gpu-spot", "gpu-on-demand", "system-2026")}
    assert {name: priority(group) for name, group in groups.items()} == {
        "gpu-spot": 20,
        "gpu-on-demand": 10,
        "system-2026": 10,
    }


def test_the_device_plugin_is_on_gpu_nodes_and_only_there(rendered: list[Manifest]) -> None:
    pod = of_kind(rendered, "DaemonSet")["nvidia-device-plugin"]["spec"]["template"]["spec"]
    assert all(bears(pod["tolerations"], key, *rest) for key, rest in taints().items())
    ((label, value),) = pod["nodeSelector"].items()
    # Both groups have what is in gpu_labels (test_a_retrain_may_be_on_both_gpu_groups_and_would_rather_be_on_spot).
    (shared,) = re.findall(r"^  gpu_labels = (\{.*\})", terraform("gpu_spot.tf"), re.MULTILINE)
    assert f'"{label}" = "{value}"' in shared
    assert label not in terraform("nodes.tf")


def test_a_run_is_not_moved_to_make_a_node_free() -> None:
    # The autoscaler would end the run and its work with it, for the price of a node that is half used.
    for flow in ("retrain", "score"):
        annotations = job(flow)["spec"]["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_a_disk_is_in_no_zone_that_can_be_without_a_node(rendered: list[Manifest]) -> None:
    assert of_kind(rendered, "PersistentVolumeClaim")
    # Auto Scaling has a node in each of its zones as long as it has one for each; the autoscaler cannot ask for a zone.
    (group,) = re.findall(r'resource "aws_eks_node_group" "system" \{\n(.*?)^\}', terraform("nodes.tf"), re.M | re.S)
    assert re.findall(r"^  subnet_ids\s*= (.+)$", group, re.M) == ["local.system_subnets[*].id"]
    (zones,) = re.findall(r"^  system_subnets\s*= slice\((.+)\)$", terraform("nodes.tf"), re.M)
    assert zones == "aws_subnet.private, 0, min(3, local.size.system_nodes.min)"
    least = [int(nodes) for nodes in re.findall(r"system_nodes\s+= \{ min = (\d+)", terraform("sizes.tf"))]
    assert least == [2, 2]


def test_prefects_server_may_be_in_any_zone_and_is_soon_in_another(rendered: list[Manifest]) -> None:
    server = of_kind(rendered, "Deployment")["prefect-server"]["spec"]["template"]["spec"]
    assert not [volume for volume in server["volumes"] if "persistentVolumeClaim" in volume]
    environment = {one["name"]: one.get("value") for one in server["containers"][0]["env"]}
    assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == prefect_leases.__name__
    waits = {one["key"].rpartition("/")[2]: one["tolerationSeconds"] for one in server["tolerations"]}
    assert waits.keys() == {"not-ready", "unreachable"}
    # A client waits 2, 4, 8, ... seconds between its attempts. Within them a node is found gone (at most 50 s), its pods are
    # given up, and the server begins elsewhere, in a third of what its startup probe allows.
    (run,) = job("retrain")["spec"]["template"]["spec"]["containers"]
    (retries,) = [int(one["value"]) for one in run["env"] if one["name"] == "PREFECT_CLIENT_MAX_RETRIES"]
    probe = server["containers"][0]["startupProbe"]
    assert (
        sum(2**n for n in range(1, retries + 1))
        > 50 + max(waits.values()) + probe["periodSeconds"] * probe["failureThreshold"] / 3
    )


def test_prefect_understands_its_settings_and_unpacks_its_pages_where_it_may_write(
    rendered: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import Settings

    (container,) = of_kind(rendered, "Deployment")["prefect-server"]["spec"]["template"]["spec"]["containers"]
    for one in container["env"]:
        monkeypatch.setenv(one["name"], one.get("value", "postgresql+asyncpg://x"))
    server = Settings().server
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    # Else it tries its own package, in vain, and serves no page.
    assert str(server.ui.static_directory).rpartition("/")[0] in mounted
    assert server.metrics_enabled  # Prometheus asks for them
    # Longer than the autoscaler waits for a spot node, and then for one on demand.
    (autoscaler,) = of_kind(rendered, "Deployment")["cluster-autoscaler"]["spec"]["template"]["spec"]["containers"]
    (wait,) = re.findall(r"--max-node-provision-time=(\d+)m", " ".join(autoscaler["command"]))
    assert server.concurrency.initial_deployment_lease_duration >= 2 * 60 * int(wait)


def test_probes_ask_what_the_service_answers(rendered: list[Manifest]) -> None:
    from perennial.settings import Settings
    from serving.app import create_app

    answered = {route.path for route in create_app(Settings(), specs={}).routes}  # type: ignore[attr-defined]
    (container,) = of_kind(rendered, "Deployment")["scoring"]["spec"]["template"]["spec"]["containers"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/health", "readiness": "/ready", "liveness": "/health"}
    assert set(asked.values()) <= answered
    pod = of_kind(rendered, "Deployment")["scoring"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + 20


def test_a_drain_or_an_update_leaves_the_service_answering(rendered: list[Manifest]) -> None:
    scaler = of_kind(rendered, "HorizontalPodAutoscaler")["scoring"]["spec"]
    budget = of_kind(rendered, "PodDisruptionBudget")["scoring"]["spec"]
    deployment = of_kind(rendered, "Deployment")["scoring"]
    assert scaler["minReplicas"] - budget["maxUnavailable"] >= 1
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment["spec"]  # an apply would undo what the autoscaler has chosen
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert budget["selector"]["matchLabels"].items() <= labels
    zones = [
        c
        for c in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        if c["topologyKey"].endswith("/zone")
    ]
    assert all(c["labelSelector"]["matchLabels"].items() <= labels for c in zones)
    assert zones
    for constraint in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        # A failed zone, or one with GPU nodes only, would count as an empty one, which no pod can be in and all others wait for.
        assert constraint["nodeTaintsPolicy"] == "Honor"
        # Pods of the old version would count, and those of the new one be left in two zones of three.
        assert constraint["matchLabelKeys"] == ["pod-template-hash"]


def chosen(policy: Manifest, labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )


def leaves_by(manifests: list[Manifest], labels: dict[str, str]) -> set[int]:
    """Ports that a pod with these labels may reach somewhere."""
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy" and chosen(m, labels)]
    rules = [rule for policy in policies for rule in policy["spec"].get("egress", [])]
    return {port["port"] for rule in rules for port in rule["ports"]}


KAFKA, POSTGRESQL, REDIS, HTTPS, DNS, AGENT = 9098, 5432, 6379, 443, 53, 80
MLFLOW, PREFECT, SCORING, PUSHGATEWAY, FOLLOWER, ALERTMANAGER = 5000, 4200, 8000, 9091, 9109, 9093


@pytest.mark.parametrize(
    ("who", "ports"),
    [
        ("scoring", {POSTGRESQL, REDIS, HTTPS}),
        ("mlflow", {POSTGRESQL, HTTPS}),
        ("prefect-server", {POSTGRESQL}),
        ("prefect-worker", {PREFECT, HTTPS}),
        ("deployments", {PREFECT, HTTPS}),
        ("accounts", {POSTGRESQL, HTTPS}),
        ("follower-flights", {KAFKA, POSTGRESQL, REDIS, HTTPS, 587, PREFECT, MLFLOW, SCORING, PUSHGATEWAY}),
        ("prometheus", {SCORING, PUSHGATEWAY, FOLLOWER, PREFECT, ALERTMANAGER}),
        ("alertmanager", {HTTPS}),
        ("pushgateway", set()),
        ("run-retrain", {KAFKA, POSTGRESQL, REDIS, HTTPS, 587, PREFECT, MLFLOW, SCORING, PUSHGATEWAY}),
    ],
)
def test_each_pod_reaches_what_it_needs_and_no_more(rendered: list[Manifest], who: str, ports: set[int]) -> None:
    (template_,) = [
        m["spec"]["template"] for m in rendered if m["metadata"]["name"] == who and "template" in m.get("spec", {})
    ]
    assert leaves_by(rendered, template_["metadata"]["labels"]) == ports | {DNS, AGENT}


def test_the_ports_of_the_stores_are_terraforms() -> None:
    found = dict(re.findall(r"^    ([\w-]+)\s+= \{ port = (\d+)", terraform("access.tf"), re.MULTILINE))
    assert found == {"database": str(POSTGRESQL), "online-store": str(REDIS), "stream": str(KAFKA)}


def test_nothing_is_open_that_no_policy_opens(rendered: list[Manifest]) -> None:
    policies = of_kind(rendered, "NetworkPolicy")
    deny = policies["default-deny"]["spec"]
    assert (deny["podSelector"], sorted(deny["policyTypes"])) == ({}, ["Egress", "Ingress"])
    assert "ingress" not in deny
    assert "egress" not in deny
    assert (
        of_kind(rendered, "Namespace")["perennial"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        == "restricted"
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_address_that_a_manifest_names_is_in_the_example(overlay: str) -> None:
    example = (KUBERNETES / "overlays" / overlay / "addresses.env.example").read_text()
    known = {line.split("=", 1)[0] for line in example.splitlines()}
    text = "\n".join(file.read_text() for file in KUBERNETES.rglob("*.yaml"))
    # By the container itself, or by kustomize.
    asked = set(re.findall(r"\$\(([A-Z_]+)\)", text)) - {"DATABASE_URL"} | set(re.findall(r"data\.([A-Z_]+)", text))
    assert asked <= known, asked - known
    source = Path(cluster_accounts.__file__).read_text()
    wanted = {name for name in re.findall(r'"([A-Z_]+)"', source) if name.endswith(("_HOST", "_PORT", "_NAME", "_ARN"))}
    assert {name for name in wanted if not name.startswith("KUBERNETES_")} <= known


def test_no_password_is_in_a_manifest(rendered: list[Manifest]) -> None:
    assert [
        m["metadata"]["name"] for m in rendered if m["kind"] == "Secret" and m.keys() & {"data", "stringData"}
    ] == []


def test_no_pod_begins_before_the_job_has_filled_its_secrets(rendered: list[Manifest]) -> None:
    filled = {cluster_accounts.SETTINGS: {"PERENNIAL_ONLINE_STORE_URL", "PERENNIAL_ALERT_URLS"}}
    for account in cluster_accounts.ACCOUNTS:
        filled.setdefault(account.secret, set()).add(account.key)
    assert of_kind(rendered, "Secret").keys() == filled.keys()
    asked: dict[str, set[str]] = {}
    for name, pod in pods(rendered):
        for container in containers(pod):
            # A secret as a whole may be empty, and the container begin without a single variable of it.
            assert not [one for one in container.get("envFrom", []) if "secretRef" in one], name
            for one in container.get("env", []):
                if key := one.get("valueFrom", {}).get("secretKeyRef"):
                    assert not key.get("optional"), name
                    assert key["key"] in filled[key["name"]], (name, key)
                    asked.setdefault(name, set()).add(key["key"])
    everything = {"PERENNIAL_DATABASE_URL", "PERENNIAL_ONLINE_STORE_URL", "PERENNIAL_ALERT_URLS"}
    assert asked == {
        "Deployment/scoring": everything - {"PERENNIAL_ALERT_URLS"},
        "Deployment/mlflow": {"url"},
        "Deployment/prefect-server": {"url"},
        "Deployment/follower-flights": everything,
        "Job/run-retrain": everything,
        "Job/run-score": everything,
    }


def test_deployments_of_a_flow_get_its_job_variables_and_the_others_none() -> None:
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    told = with_job_variables(project, job_variables(), template())
    by_flow = {d["entrypoint"].rpartition(".")[2]: d["work_pool"] for d in told["deployments"]}
    assert by_flow["retrain"] == {"name": "perennial", "job_variables": job_variables()["retrain"]}
    assert by_flow["score"] == {"name": "perennial", "job_variables": {}}
    assert with_image(template(), IMAGE)["variables"]["properties"]["image"]["default"] == IMAGE
    assert "default" not in template()["variables"]["properties"]["image"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [({"retain": {}}, "retain"), ({"retrain": {"gpus": 1}}, "gpus"), ({"retrain": {"gpu_limt": 1}}, "gpu_limt")],
)
def test_a_misspelt_flow_or_variable_is_told(variables: dict[str, Any], said: str) -> None:
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    with pytest.raises(UsageError, match=said):
        with_job_variables(project, variables, template())


def test_every_job_variable_of_the_template_is_used_and_declared() -> None:
    told = json.dumps(template()["job_configuration"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", told))
    assert used == set(template()["variables"]["properties"])
