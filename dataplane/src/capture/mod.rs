//! Redirection of a pod's traffic into its node proxy, inside the pod's network namespace.
//!
//! The rules are made of typed values only ([`Redirection`]), never of text from outside, and applied in one nft
//! transaction: a pod is captured wholly or not at all. Enrolling twice, or leaving without having been enrolled,
//! changes nothing.

mod redirection;
pub mod tool;

pub use redirection::{PROXY_MARK, Redirection};
pub use tool::{Tool, ToolError, check_tools};

use crate::net::NetworkNamespace;

/// Puts the rules into force in a pod's namespace, in place of earlier ones.
pub fn enroll(pod: &NetworkNamespace, redirection: &Redirection) -> Result<(), ToolError> {
    for family in redirection.families() {
        if !mark_rule_exists(pod, family)? {
            tool::run(Tool::Ip, &[family, "-batch", "-"], &redirection::mark_rule("add"), Some(pod))?;
        }
        tool::run(Tool::Ip, &[family, "-batch", "-"], &redirection::loopback_route(family), Some(pod))?;
    }
    tool::run(Tool::Nft, &["-f", "-"], &redirection.script(), Some(pod))?;
    Ok(())
}

/// Leaves new connections of a pod alone. Those that were redirected before still pass, until [`leave`]: without the
/// table their packets would no longer find the proxy, and not even a reset would reach the other side.
pub fn stop(pod: &NetworkNamespace) -> Result<(), ToolError> {
    tool::run(Tool::Nft, &["-f", "-"], &redirection::stop_script(), Some(pod)).map(drop)
}

/// Takes the rules away: the pod's connections go their own way again. [`stop`] comes first, and the end of those that
/// are redirected.
pub fn leave(pod: &NetworkNamespace) -> Result<(), ToolError> {
    tool::run(Tool::Nft, &["-f", "-"], &redirection::removal_script(), Some(pod))?;
    for family in redirection::FAMILIES {
        if mark_rule_exists(pod, family)? {
            tool::run(Tool::Ip, &[family, "-batch", "-"], &redirection::mark_rule("del"), Some(pod))?;
            tool::run(
                Tool::Ip,
                &[family, "-batch", "-"],
                &redirection::loopback_route_removal(family),
                Some(pod),
            )?;
        }
    }
    Ok(())
}

fn mark_rule_exists(pod: &NetworkNamespace, family: &str) -> Result<bool, ToolError> {
    let listed =
        tool::run(Tool::Ip, &[family, "rule", "show", "pref", redirection::RULE_PREFERENCE], "", Some(pod))?;
    Ok(!listed.trim().is_empty())
}
