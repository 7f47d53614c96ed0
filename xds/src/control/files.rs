//! Files that only their owner may read: keys, tokens, the folder that holds them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl FileError {
    pub(super) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// Makes the folder with mode 0700, parents included; one that exists is left as it is.
pub(super) fn private_directory(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError::new("create the folder", path, source))
}

/// Writes a file of mode 0600 in one step: a reader sees the old content or the new one, never a part.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_with_mode(path, content, 0o600)
}

/// The same with mode 0644, for what everyone may know.
pub(super) fn write_public(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_with_mode(path, content, 0o644)
}

fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let error = |source| FileError::new("write", path, source);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    // What an earlier process of the same number left behind may have any mode.
    match fs::remove_file(&temporary) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(error)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(error)?;
    fs::rename(&temporary, path).map_err(error)
}

/// Reads a private file and refuses it if others may read it too.
pub(super) fn read_private(path: &Path) -> Result<String, FileError> {
    let error = |source| FileError::new("read", path, source);
    let mode = fs::metadata(path).map_err(error)?.permissions().mode();
    if mode & 0o077 != 0 {
        let message = format!("mode {:03o} lets others read it; run chmod 600", mode & 0o777);
        return Err(error(io::Error::new(io::ErrorKind::PermissionDenied, message)));
    }
    fs::read_to_string(path).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_file_is_read_back_and_refused_once_open_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/key");
        private_directory(path.parent().unwrap()).unwrap();
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(read_private(&path).unwrap(), "two");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_private(&path).unwrap_err().to_string().contains("chmod 600"));
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays behind");
    }
}
