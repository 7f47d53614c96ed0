//! The file of revocation lists: read again whenever it changes.
//!
//! It is looked at every [`POLL`]: a mounted ConfigMap changes by links that are swapped above it, which watches of the
//! file itself do not see.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tunnel::tls::{REVOCATION_BYTES_MAX, RevocationError, RevocationLists};

/// How late a change may be noticed.
pub(super) const POLL: Duration = Duration::from_millis(500);

/// Why the file cannot be used. What was in force before stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum RevocationFileError {
    #[error("the revocation lists {path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the revocation lists {path} cannot be used: {source}", path = path.display())]
    Lists { path: PathBuf, source: RevocationError },
}

/// The file, and what was seen of it last.
#[derive(Debug)]
pub(super) struct RevocationFile {
    path: PathBuf,
    seen: Option<Stamp>,
    /// It could not be read the last time; told once.
    missing: bool,
}

/// Changes whenever the file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl RevocationFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None, missing: false }
    }

    /// What the file says, if that changed since the last look. Blocks.
    pub(super) fn look(&mut self) -> Option<Result<RevocationLists, RevocationFileError>> {
        match self.read_if_changed() {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                self.missing = false;
                let lists = RevocationLists::parse(&bytes);
                Some(lists.map_err(|source| RevocationFileError::Lists { path: self.path.clone(), source }))
            }
            Err(source) => {
                self.seen = None;
                let told = std::mem::replace(&mut self.missing, true);
                (!told).then(|| Err(RevocationFileError::Read { path: self.path.clone(), source }))
            }
        }
    }

    fn read_if_changed(&mut self) -> io::Result<Option<Vec<u8>>> {
        let file = File::open(&self.path)?;
        // Before the content: what is written while it is read makes another stamp.
        let stamp = Stamp::of(&file.metadata()?);
        if self.seen == Some(stamp) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(REVOCATION_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        self.seen = Some(stamp);
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    fn list(name: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let issuer = Issuer::new(params, KeyPair::generate().unwrap());
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).unwrap().pem().unwrap()
    }

    #[test]
    fn each_change_is_told_once_and_trouble_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let (at, other) = (folder.path().join("crl.pem"), folder.path().join("next"));
        let mut file = RevocationFile::new(at.clone());
        assert!(matches!(file.look(), Some(Err(RevocationFileError::Read { .. }))));
        assert!(file.look().is_none());
        std::fs::write(&at, list("one")).unwrap();
        assert_eq!(file.look().unwrap().unwrap().len(), 1);
        assert!(file.look().is_none());
        // Replaced as a mounted ConfigMap is.
        std::fs::write(&other, list("one") + &list("two")).unwrap();
        std::fs::rename(&other, &at).unwrap();
        assert_eq!(file.look().unwrap().unwrap().len(), 2);
        std::fs::write(&at, "garbage").unwrap();
        let error = file.look().unwrap().unwrap_err();
        assert!(error.to_string().contains("crl.pem"), "{error}");
        assert!(file.look().is_none());
        std::fs::remove_file(&at).unwrap();
        assert!(file.look().unwrap().is_err());
        std::fs::write(&at, list("three")).unwrap();
        assert_eq!(file.look().unwrap().unwrap().len(), 1);
    }
}
