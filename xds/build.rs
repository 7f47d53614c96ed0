//! Compiles the .proto files with protox, so that no protoc has to be installed.
//!
//! Of the messages in `proto/envoy` it also writes down, as a table, which fields there are: prost drops what it does not
//! know without a word, and what decides about security must not be dropped.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

const FILES: [&str; 15] = [
    "status.proto",
    "ext_authz.proto",
    "discovery.proto",
    "workload.proto",
    "authorization.proto",
    "ca.proto",
    "zds.proto",
    "l7.proto",
    "envoy/core.proto",
    "envoy/matcher.proto",
    "envoy/listener.proto",
    "envoy/route.proto",
    "envoy/rbac.proto",
    "envoy/filter.proto",
    "envoy/cluster.proto",
];

/// The package whose messages the table lists.
const LISTED: &str = "corelane.envoy.v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("envoy_shapes.rs"), shapes(&descriptors)?)?;
    let mut config = prost_build::Config::new();
    config.bytes([
        ".google.protobuf.Any.value",
        ".corelane.l7.v1",
        ".corelane.envoy.v1.Listener.filter_chains",
    ]);
    // Ordered, so that equal workloads have equal bytes: the server's versions are hashes of them.
    config.btree_map([
        ".istio.workload.Workload.services",
        ".corelane.l7.v1.WorkloadLabels.labels",
        ".corelane.envoy.v1",
        ".envoy.service.auth.v3",
    ]);
    config.enable_type_names();
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// The table in Rust: `&[Shape { name, fields: &[Field { number, name, kind }], skipped: &[(from, to)] }]`, by name.
fn shapes(descriptors: &FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let mut messages = BTreeMap::new();
    for file in descriptors.file.iter().filter(|file| file.package() == LISTED) {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages);
        }
    }
    let position = |name: &str| messages.keys().position(|own| own == name.trim_start_matches('.'));
    let mut text = String::from("&[\n");
    for (name, message) in &messages {
        writeln!(text, "Shape {{ name: {name:?}, fields: &[")?;
        for field in &message.field {
            let kind = match field.r#type() {
                Type::Message => position(field.type_name())
                    .map_or("Kind::Leaf".to_owned(), |at| format!("Kind::Message({at})")),
                _ => "Kind::Leaf".to_owned(),
            };
            writeln!(
                text,
                "Field {{ number: {}, name: {:?}, kind: {kind} }},",
                field.number(),
                field.name()
            )?;
        }
        // The end of a range is exclusive.
        let skipped = message.reserved_range.iter().map(|range| (range.start(), range.end()));
        writeln!(text, "], skipped: &{:?} }},", skipped.collect::<Vec<_>>())?;
    }
    text.push(']');
    Ok(text)
}

fn collect(scope: &str, message: &DescriptorProto, messages: &mut BTreeMap<String, DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, messages);
    }
    messages.insert(name, message.clone());
}
