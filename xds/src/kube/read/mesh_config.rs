//! ConfigMaps: the one that holds MeshConfig, and those that hold authorities.
//!
//! MeshConfig has some hundred fields that concern installations of another kind: what is not read is tolerated, as for
//! core objects. Providers are read strictly, for they decide who is let in.

use std::sync::Arc;

use l7::path::Normalization;

use super::super::catalog::Meta;
use super::super::mesh::{ConfigMap, ExtensionProvider, MESH_CONFIG_MAP, MeshConfig, ProviderKind};
use super::super::problem::Severity;
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml;
use super::provider;

/// Bound of our own.
const PROVIDERS_MAX: usize = 64;

const NORMALIZATIONS: [(&str, Normalization); 5] = [
    ("DEFAULT", Normalization::Base),
    ("NONE", Normalization::None),
    ("BASE", Normalization::Base),
    ("MERGE_SLASHES", Normalization::MergeSlashes),
    ("DECODE_AND_MERGE_SLASHES", Normalization::DecodeAndMergeSlashes),
];

pub(super) fn config_map(fields: &mut Fields<'_>, meta: Meta, findings: &mut Findings) -> Option<ConfigMap> {
    fields.ignore(&["binaryData", "immutable"]);
    let Some(data) = fields.optional("data") else {
        return Some(ConfigMap { meta, mesh: None, authorities: None });
    };
    let mut data = data.fields(findings)?;
    let authorities = data.optional("ca.crt").and_then(|item| item.shared(findings));
    let holds_mesh = *meta.name == *MESH_CONFIG_MAP;
    let mesh = match data.optional("mesh").filter(|_| holds_mesh) {
        Some(item) => Some(embedded(&item, findings)?),
        None => None,
    };
    Some(ConfigMap { meta, mesh, authorities })
}

/// A text that is YAML itself, whose first line is the one at which it begins.
fn embedded(item: &Item<'_>, findings: &mut Findings) -> Option<MeshConfig> {
    let text = item.text(findings)?;
    let lines_before = findings.lines_before;
    findings.lines_before = item.node.at.line.saturating_sub(1);
    let mut documents = yaml::documents(text).into_iter();
    let mesh = match documents.next() {
        None => Some(MeshConfig::default()),
        Some(Ok(node)) => mesh_config(&Item { node: &node, path: String::from("mesh") }, findings),
        Some(Err(error)) => {
            findings.add(Severity::Error, error.at, &item.path, error.message, error.fix);
            None
        }
    };
    findings.lines_before = lines_before;
    if documents.next().is_some() {
        item.error(findings, "MeshConfig is one document", "remove the others");
    }
    mesh
}

fn mesh_config(item: &Item<'_>, findings: &mut Findings) -> Option<MeshConfig> {
    let mut fields = item.fields(findings)?;
    let providers = fields.optional("extensionProviders").map_or_else(Vec::new, |list| {
        let strict = std::mem::replace(&mut findings.strict, true);
        let providers = providers(&list, findings);
        findings.strict = strict;
        providers
    });
    let normalization = fields.optional("pathNormalization").and_then(|item| normalization(&item, findings));
    let trust_domain = fields.optional("trustDomain").and_then(|item| item.shared(findings));
    let aliases = fields.optional("trustDomainAliases");
    let root_namespace = fields.optional("rootNamespace").and_then(|item| item.shared(findings));
    fields.finish(findings);
    Some(MeshConfig {
        providers,
        normalization,
        trust_domain: trust_domain.filter(|name| !name.is_empty()),
        trust_domain_aliases: aliases.map_or_else(Vec::new, |item| item.texts(findings)),
        root_namespace: root_namespace.filter(|name| !name.is_empty()),
    })
}

fn normalization(item: &Item<'_>, findings: &mut Findings) -> Option<Normalization> {
    let mut fields = item.fields(findings)?;
    let normalization =
        fields.optional("normalization").and_then(|item| item.one_of(findings, &NORMALIZATIONS));
    let strict = std::mem::replace(&mut findings.strict, true);
    fields.finish(findings);
    findings.strict = strict;
    normalization
}

fn providers(list: &Item<'_>, findings: &mut Findings) -> Vec<ExtensionProvider> {
    let items = list.list(findings);
    if items.len() > PROVIDERS_MAX {
        list.error(findings, "there are too many providers", format!("keep at most {PROVIDERS_MAX}"));
    }
    let mut providers: Vec<ExtensionProvider> = Vec::new();
    for item in &items {
        let Some(provider) = one_provider(item, findings) else { continue };
        if providers.iter().any(|other| other.name == provider.name) {
            let message = format!("two providers are named {:?}", provider.name);
            item.error(findings, message, "rename one of the two");
        }
        providers.push(provider);
    }
    providers
}

fn one_provider(item: &Item<'_>, findings: &mut Findings) -> Option<ExtensionProvider> {
    const OTHERS: [&str; 12] = [
        "zipkin",
        "lightstep",
        "datadog",
        "stackdriver",
        "opencensus",
        "skywalking",
        "opentelemetry",
        "prometheus",
        "envoyFileAccessLog",
        "envoyHttpAls",
        "envoyTcpAls",
        "envoyOtelAls",
    ];
    let mut fields = item.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| item.filled(findings));
    let mut kinds = Vec::new();
    if let Some(item) = fields.optional("envoyExtAuthzHttp") {
        kinds.push(provider::http(&item, findings).map(ProviderKind::Authorizer));
    }
    if let Some(item) = fields.optional("envoyExtAuthzGrpc") {
        kinds.push(provider::grpc(&item, findings).map(ProviderKind::Authorizer));
    }
    for other in OTHERS {
        if fields.optional(other).is_some() {
            kinds.push(Some(ProviderKind::Other(Arc::from(other))));
        }
    }
    fields.finish(findings);
    if kinds.len() != 1 {
        let message = format!("a provider is of one kind, and this is of {}", kinds.len());
        item.error(findings, message, "write envoyExtAuthzHttp or envoyExtAuthzGrpc for an authorizer");
        return None;
    }
    let kind = kinds.pop().flatten()?;
    Some(ExtensionProvider {
        name: Arc::from(name?),
        kind,
        at: findings.shifted(item.node.at),
        field: Arc::from(item.path.as_str()),
    })
}
