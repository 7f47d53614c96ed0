//! Bearer tokens: who may connect, as which node.
//!
//! Each node has a token of its own, so that a token also says for whom its holder may ask certificates. Comparison
//! takes the same time wherever two tokens differ and however long they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::SecureRandom;
use sha2::{Digest, Sha256};

use super::config::NodeCredential;
use super::desired::hex;
use super::files::{self, FileError};

/// Random bytes of a token that we draw ourselves.
const TOKEN_BYTES: usize = 32;
/// Shortest token accepted from a configuration.
pub const TOKEN_CHARACTERS_MIN: usize = 16;
const TOKEN_CHARACTERS_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(
        "the token of node {node} has {length} characters; use {TOKEN_CHARACTERS_MIN} to \
         {TOKEN_CHARACTERS_MAX}, printable and without spaces"
    )]
    Unusable { node: Arc<str>, length: usize },
    #[error("two nodes are named {0:?}; give each its own name")]
    DuplicateNode(Arc<str>),
    #[error("node name {0:?} cannot be a file name; use letters, digits, `-`, `_` and `.`")]
    NodeName(Arc<str>),
    #[error("nodes {0} and {1} have the same token; give each its own")]
    Shared(Arc<str>, Arc<str>),
    #[error("the system gives no randomness")]
    Random,
    #[error(transparent)]
    File(#[from] FileError),
}

/// The tokens in force, kept as hashes.
#[derive(Debug)]
pub struct Tokens {
    entries: Vec<(Arc<str>, [u8; 32])>,
}

/// Where a node's token was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    pub node: Arc<str>,
    pub path: PathBuf,
}

impl Tokens {
    /// Draws what tokens are missing and writes each to `directory/NODE`, readable by the owner only.
    pub fn issue(
        credentials: &[NodeCredential],
        directory: &Path,
        random: &dyn SecureRandom,
    ) -> Result<(Self, Vec<TokenFile>), TokenError> {
        files::private_directory(directory)?;
        let mut entries: Vec<(Arc<str>, [u8; 32])> = Vec::new();
        let mut token_files = Vec::new();
        for NodeCredential { node, token } in credentials {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if node.is_empty() || node.starts_with('.') || !node.chars().all(plain) {
                return Err(TokenError::NodeName(node.clone()));
            }
            if entries.iter().any(|(other, _)| other == node) {
                return Err(TokenError::DuplicateNode(node.clone()));
            }
            let token = match token {
                Some(token) => token.to_string(),
                None => draw(random)?,
            };
            let length = token.chars().count();
            if !(TOKEN_CHARACTERS_MIN..=TOKEN_CHARACTERS_MAX).contains(&length)
                || !token.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(TokenError::Unusable { node: node.clone(), length });
            }
            let hash = hash(&token);
            if let Some((other, _)) = entries.iter().find(|(_, held)| *held == hash) {
                return Err(TokenError::Shared(other.clone(), node.clone()));
            }
            let path = directory.join(&**node);
            files::write_private(&path, token.as_bytes())?;
            token_files.push(TokenFile { node: node.clone(), path });
            entries.push((node.clone(), hash));
        }
        Ok((Self { entries }, token_files))
    }

    /// The node that an `authorization` header was issued to.
    pub fn node_of(&self, authorization: &str) -> Option<Arc<str>> {
        let (scheme, token) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let given = hash(token.trim());
        // Every entry is compared to its end, so that time tells nothing about which one comes close.
        let mut found = None;
        for (node, held) in &self.entries {
            if equal(held, &given) {
                found = Some(node.clone());
            }
        }
        found
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Equality without an early end.
fn equal(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let difference = left.iter().zip(right).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn draw(random: &dyn SecureRandom) -> Result<String, TokenError> {
    let mut bytes = [0; TOKEN_BYTES];
    random.fill(&mut bytes).map_err(|_| TokenError::Random)?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn credential(node: &str, token: Option<&str>) -> NodeCredential {
        NodeCredential { node: node.into(), token: token.map(Arc::from) }
    }

    fn issue(credentials: &[NodeCredential]) -> Result<(Tokens, Vec<TokenFile>), TokenError> {
        let directory = tempfile::tempdir().unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let issued = Tokens::issue(credentials, &directory.path().join("tokens"), provider.secure_random)?;
        for file in &issued.1 {
            let mode = std::fs::metadata(&file.path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let token = std::fs::read_to_string(&file.path).unwrap();
            assert_eq!(issued.0.node_of(&format!("Bearer {token}")), Some(file.node.clone()));
        }
        Ok(issued)
    }

    #[test]
    fn only_the_whole_right_token_lets_a_node_in() {
        let given = "0123456789abcdef0123";
        let (tokens, _) = issue(&[credential("a", Some(given)), credential("b", None)]).unwrap();
        assert_eq!(tokens.node_of(&format!("bearer {given}")).as_deref(), Some("a"));
        for wrong in [
            String::new(),
            String::from("Bearer"),
            String::from("Bearer "),
            format!("Basic {given}"),
            format!("Bearer {given}0"),
            format!("Bearer {}", &given[1..]),
            given.to_owned(),
        ] {
            assert_eq!(tokens.node_of(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn unusable_credentials_are_refused_with_the_node_named() {
        let long = "0123456789abcdef";
        let error = |credentials: &[NodeCredential]| issue(credentials).unwrap_err().to_string();
        assert!(error(&[credential("n1", Some("short"))]).contains("n1"));
        assert!(error(&[credential("n1", Some("0123456789 abcdef"))]).contains("n1"));
        assert!(error(&[credential("../n", None)]).contains("../n"));
        assert!(error(&[credential("n", None), credential("n", None)]).contains("two nodes"));
        assert!(error(&[credential("a", Some(long)), credential("b", Some(long))]).contains("same token"));
    }
}
