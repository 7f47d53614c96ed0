//! Compiles the .proto files with protox, so that no protoc has to be installed.

use std::error::Error;

const FILES: [&str; 7] = [
    "status.proto",
    "discovery.proto",
    "workload.proto",
    "authorization.proto",
    "ca.proto",
    "zds.proto",
    "l7.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes([".google.protobuf.Any.value", ".corelane.l7.v1"]);
    // Ordered, so that equal workloads have equal bytes: the server's versions are hashes of them.
    config.btree_map([".istio.workload.Workload.services", ".corelane.l7.v1.WorkloadLabels.labels"]);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
