//! The rivals: each a program of its own that takes the arguments of `corelane tunnel`.

mod tokio_h2;

use std::net::SocketAddr;

use crate::Failure;
use crate::tls::Files;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// HBONE client on tokio, rustls and the h2 crate.
    TokioH2Client(ClientArgs),
    /// HBONE server on tokio, rustls and the h2 crate.
    TokioH2Server(ServerArgs),
    /// An echo server on one runtime.
    Echo(crate::runtimes::EchoArgs),
    /// A TCP relay on one runtime.
    Relay(crate::runtimes::RelayArgs),
    /// The HTTP backend of `perf compare`.
    HttpBackend(crate::compare::http::backend::Args),
    /// The gRPC backend of `perf compare`.
    GrpcBackend(crate::compare::grpc::backend::Args),
    /// The discovery client and workers of `perf scale`.
    ScaleNode(crate::scale::node::Args),
}

/// The arguments of `corelane tunnel client` that a rival needs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClientArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    peer: SocketAddr,
    #[arg(long)]
    authority: String,
    #[arg(long)]
    congestion: Option<String>,
    #[command(flatten)]
    files: Files,
}

/// The arguments of `corelane tunnel server` that a rival needs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    congestion: Option<String>,
    #[command(flatten)]
    files: Files,
}

pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::TokioH2Client(args) => on_tokio(tokio_h2::client(args)),
        Command::TokioH2Server(args) => on_tokio(tokio_h2::server(args)),
        Command::HttpBackend(args) => crate::compare::http::backend::run(&args),
        Command::GrpcBackend(args) => crate::compare::grpc::backend::run(&args),
        Command::Echo(args) => crate::runtimes::echo(&args),
        Command::ScaleNode(args) => crate::scale::node::run(&args),
        Command::Relay(args) => crate::runtimes::relay(&args),
    }
}

fn on_tokio(program: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, program)
}
