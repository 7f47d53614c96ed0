//! A throw-away mesh authority: one root, and leaves with SPIFFE names, as files in a folder that goes away.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::Failure;
use crate::tls::Files;

#[derive(Debug)]
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    /// Makes a root and the leaves `client`, `server` and `waypoint`.
    pub(crate) fn generate() -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let mut root = CertificateParams::new(Vec::<String>::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        let this = Self { directory };
        fs::write(this.root(), root.pem())?;
        for name in ["client", "server", "waypoint"] {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(Vec::<String>::new())?;
            leaf.distinguished_name = DistinguishedName::new();
            leaf.subject_alt_names = vec![SanType::URI(identity(name).try_into()?)];
            leaf.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let certificate = leaf.signed_by(&key, &root)?.pem();
            fs::write(this.bundle(name), format!("{certificate}{}", key.serialize_pem()))?;
            fs::write(this.certificate(name), certificate)?;
            fs::write(this.key(name), key.serialize_pem())?;
        }
        Ok(this)
    }

    /// Those of one leaf.
    pub(crate) fn files(&self, name: &str) -> Files {
        Files { cert: self.certificate(name), key: self.key(name), ca: self.root() }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.pem"))
    }

    /// Certificate and key in one file.
    pub(crate) fn bundle(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.bundle"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.key"))
    }
}

/// The SPIFFE name of a leaf.
pub(crate) fn identity(name: &str) -> String {
    format!("spiffe://cluster.local/ns/perf/sa/{name}")
}
