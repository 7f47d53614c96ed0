//! `corelane mesh` with waypoints: made for their Gateways, used by namespace, Service and pod, and left again.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

use std::fs;
use std::process::Command;

const MESH: &str = r"
apiVersion: v1
kind: Namespace
metadata: { name: app, labels: { istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: waypoint, namespace: app }
spec: { gatewayClassName: istio-waypoint, listeners: [{ name: mesh, port: 15008, protocol: HBONE }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: for-pods, namespace: app, labels: { istio.io/waypoint-for: workload } }
spec: { gatewayClassName: istio-waypoint, listeners: [{ name: mesh, port: 15008, protocol: HBONE }] }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: app }
spec: { nodeName: one, serviceAccountName: client, containers: [{ name: c, image: c }] }
---
apiVersion: v1
kind: Pod
metadata: { name: other, namespace: app }
spec: { nodeName: one, serviceAccountName: other, containers: [{ name: c, image: c }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: app, labels: { app: web, istio.io/use-waypoint: for-pods } }
spec: { nodeName: two, serviceAccountName: web, containers: [{ name: c, image: c, ports: [{ containerPort: 8080 }] }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web-2, namespace: app, labels: { app: web-2 } }
spec: { nodeName: one, serviceAccountName: web, containers: [{ name: c, image: c, ports: [{ containerPort: 8080 }] }] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: web-2, namespace: app }
spec: { selector: { app: web-2 }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: bare, namespace: app, labels: { istio.io/use-waypoint: none } }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /second } }]
    backendRefs: [{ name: web-2, port: 80 }]
  - backendRefs: [{ name: web, port: 80 }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: of-web, namespace: app }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  rules:
  - from: [{ source: { serviceAccounts: [client] } }]
    to: [{ operation: { paths: ['/v1/{*}/items', '/second'] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: of-pods, namespace: app }
spec:
  action: DENY
  targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: for-pods }]
  rules: [{ to: [{ operation: { paths: [/secret] } }] }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: of-class, namespace: istio-system }
spec:
  action: DENY
  targetRefs: [{ group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint }]
  rules: [{ to: [{ operation: { paths: [/nowhere] } }] }]
";

const PLAN: &str = r"
steps:
- title: the service's waypoint decides by who calls and what, and routes
  actions:
  - request: { from: app/client, to: 'web.app:80', path: /v1/7/items, expect: { status: 200, pod: web } }
  - request: { from: app/client, to: 'web.app:80', path: /second, expect: { status: 200, pod: web-2 } }
  - request: { from: app/client, to: 'web.app:80', path: /v1/7/8/items, expect: { status: 403 } }
  - request: { from: app/other, to: 'web.app:80', path: /v1/7/items, expect: { status: 403 } }
- title: the namespace's waypoint is for every service of it, and the class's policies for every waypoint
  actions:
  - request: { from: app/other, to: 'web-2.app:80', path: /any, expect: { status: 200, pod: web-2 } }
  - request: { from: app/other, to: 'web-2.app:80', path: /nowhere, expect: { status: 403 } }
- title: a service opts out
  actions:
  - request: { from: app/other, to: 'bare.app:80', path: /nowhere, expect: { status: 200, pod: web } }
- title: a pod's own waypoint is for its own address
  actions:
  - request: { from: app/other, to: 'pod/app/web:8080', path: /any, expect: { status: 200, pod: web } }
  - request: { from: app/other, to: 'pod/app/web:8080', path: /secret, expect: { status: 403 } }
  - request: { from: app/other, to: 'pod/app/web-2:8080', path: /secret, expect: { status: 200, pod: web-2 } }
";

#[test]
fn gateways_get_waypoints_that_route_and_enforce_for_services_and_pods() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = folder.path().join("mesh");
    fs::create_dir(&mesh).unwrap();
    fs::write(mesh.join("mesh.yaml"), MESH).unwrap();
    let plan = folder.path().join("plan.yaml");
    fs::write(&plan, PLAN).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(["--log", "info", "mesh"]).arg(&mesh).arg("--run").arg(&plan).args(["--workers", "1"]);
    command.env_remove("CORELANE_LOG");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("all 4 steps held"), "{text}");
}
