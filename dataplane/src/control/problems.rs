//! What a waypoint does not understand of what it is told: logged as it comes and goes.

use std::sync::Arc;

use xds::snapshot::Snapshot;

/// Lines of one change; how many more there are is said as well.
const LINES_MAX: usize = 16;

/// Those that have been told.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// In order.
    told: Vec<String>,
}

impl Problems {
    /// Tells what has changed, and returns how many there are.
    pub(super) fn follow(&mut self, node: &Arc<str>, snapshot: &Snapshot) -> usize {
        let now = snapshot.waypoint_config().map_or(&[][..], |config| config.problems());
        if now != self.told {
            let change = self.change(now);
            for problem in change.came.iter().take(LINES_MAX) {
                tracing::warn!(node = %node, problem, "what it concerns is refused or left out");
            }
            let more = change.came.len().saturating_sub(LINES_MAX);
            if more > 0 {
                tracing::warn!(node = %node, more, "further problems; /config_dump lists all");
            }
            if change.went > 0 {
                tracing::info!(node = %node, mended = change.went, left = now.len(), "problems are gone");
            }
            self.told = now.to_vec();
        }
        now.len()
    }

    fn change<'n>(&self, now: &'n [String]) -> Change<'n> {
        let came: Vec<_> = now.iter().filter(|it| self.told.binary_search(it).is_err()).collect();
        Change { went: self.told.len() + came.len() - now.len(), came }
    }
}

struct Change<'n> {
    came: Vec<&'n String>,
    went: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let texts = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let problems = Problems { told: texts(&["a", "b", "c"]) };
        let now = texts(&["b", "d"]);
        let change = problems.change(&now);
        assert_eq!((change.came, change.went), (vec![&"d".to_owned()], 2));
    }
}
