//! Whatever the text, reading ends with a catalog and findings; what is in the catalog converts.

use super::load;
use crate::kube::convert::{policies, routes};
use crate::kube::problem::render;
use crate::kube::{MeshSettings, check_references};

/// Parts that lead deep into the readers, which random bytes alone would not reach.
const PARTS: [&str; 46] = [
    "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: r, namespace: app}\n",
    "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: t, namespace: app}\n",
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: app}\ndata: {ca.crt: x}\n",
    "  - matches: [{method: {service: a.B, method: C}}]\n",
    "    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}}]\n",
    "  validation: {hostname: a, caCertificateRefs: [{group: '', kind: ConfigMap, name: c}]}\n",
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: app}\n",
    "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: app}\n",
    "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: app}\n",
    "apiVersion: v1\nkind: List\nitems:\n- ",
    "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: q, namespace: app}\n",
    "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: app}\n",
    "spec:\n",
    "  rules:\n",
    "  - from:\n",
    "    - source:\n",
    "        principals: [a, '*']\n",
    "  - to:\n",
    "    - operation:\n",
    "        paths: ['/{**}/x', \"/\\u0000\", '{']\n",
    "  - when:\n",
    "    - key: request.auth.claims[a][b]\n",
    "      values: [x]\n",
    "  parentRefs: [{group: '', kind: Service, name: s}]\n",
    "  - matches: [{path: {value: /x}}]\n",
    "    backendRefs: [{name: s, port: 80, weight: 3}]\n",
    "  ports: [{port: 80}]\n",
    "  action: DENY\n",
    "  selector: {matchLabels: {a: b}}\n",
    "  portLevelMtls: {80: {mode: STRICT}}\n",
    "  hosts: [a.b]\n",
    "  targetRefs: [{kind: Service, name: s}]\n",
    "---\n",
    "- ",
    "? ",
    ": ",
    "&a ",
    "*a ",
    "<<: *a\n",
    "!!binary ",
    "{",
    "]",
    "\"",
    "|\n",
    "\t",
    "99999999999999999999999999999999999999999\n",
];

fn read(text: &str) {
    let loaded = load(text);
    let mesh = MeshSettings::default();
    let warnings = check_references(&loaded.catalog, &mesh);
    let (_, errors) = policies(&loaded.catalog, &mesh);
    assert_eq!(errors, [], "what was read must convert: {text:?}");
    let _ = routes(&loaded.catalog, &mesh);
    // A carriage return alone ends a line too.
    let lines = u32::try_from(text.matches(['\n', '\r']).count()).unwrap() + 1;
    for problem in loaded.problems.iter().chain(&warnings) {
        assert!((1..=lines).contains(&problem.line), "{problem}\n{text:?}");
    }
    let _ = render(&loaded.problems);
}

#[test]
fn fuzz_any_text_is_read() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| read(&String::from_utf8_lossy(bytes)));
}

#[test]
fn fuzz_parts_of_objects_are_read() {
    bolero::check!().with_type::<Vec<(u8, u8)>>().for_each(|choices| {
        let text: String = choices
            .iter()
            .map(|(part, byte)| match PARTS.get(usize::from(*part) % (PARTS.len() + 4)) {
                Some(part) => (*part).to_owned(),
                None => char::from(*byte).to_string(),
            })
            .collect();
        read(&text);
    });
}
