//! Follows the file that names the node's name servers.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::session::{RESOLV_CONF_BYTES_MAX, ResolvConf};

/// How often it is looked whether the file has changed.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The file and what it said last.
#[derive(Debug)]
pub(super) struct NameServers {
    path: PathBuf,
    seen: Option<Version>,
    conf: Arc<ResolvConf>,
}

/// What changes with the file, however it is replaced.
type Version = (u64, u64, Option<SystemTime>);

impl NameServers {
    /// Reads the file. Without it there are no servers, and names that the mesh does not know are not resolved.
    pub(super) fn new(path: PathBuf) -> Self {
        let mut this = Self { path, seen: None, conf: Arc::default() };
        this.look();
        this
    }

    pub(super) fn conf(&self) -> Arc<ResolvConf> {
        Arc::clone(&self.conf)
    }

    /// Reads the file again if it has changed; true if it says something else now. A file that cannot be read leaves
    /// the last word in force.
    pub(super) fn look(&mut self) -> bool {
        let (version, conf) = match self.read() {
            Ok(Some(read)) => read,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the name servers of the node are not known");
                return false;
            }
        };
        self.seen = Some(version);
        let changed = *self.conf != conf;
        self.conf = Arc::new(conf);
        changed
    }

    /// `None` if it is the version that was read last.
    fn read(&self) -> io::Result<Option<(Version, ResolvConf)>> {
        let file = File::open(&self.path)?;
        let facts = file.metadata()?;
        let version = (facts.ino(), facts.len(), facts.modified().ok());
        if self.seen == Some(version) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(RESOLV_CONF_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(Some((version, ResolvConf::parse(&String::from_utf8_lossy(&bytes)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_lost_one_stays_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut servers = NameServers::new(path.clone());
        assert_eq!(*servers.conf(), ResolvConf::default());
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        assert!(servers.look());
        assert!(!servers.look());
        assert_eq!(servers.conf().servers, ["10.0.0.1:53".parse().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        assert!(!servers.look());
        std::fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        assert!(servers.look());
        assert_eq!(servers.conf().servers, ["10.0.0.22:53".parse().unwrap()]);
    }
}
