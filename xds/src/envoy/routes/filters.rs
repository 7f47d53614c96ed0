//! Header edits of routes and of their backends.

use l7::ir::{Filters, HeaderEdits, HeaderValue};

use crate::envoy::Refusal;
use crate::envoy::refusal::Within;
use crate::envoy::text::lower;
use crate::proto::waypoint::header_value_option::AppendAction;
use crate::proto::waypoint::weighted_clusters::ClusterWeight;
use crate::proto::waypoint::{HeaderValueOption, Route};

pub(super) fn of_route(route: &Route) -> Result<Filters, Refusal> {
    Ok(Filters {
        request_headers: edits(&route.request_headers_to_add, &route.request_headers_to_remove)
            .within("request_headers_to_add")?,
        response_headers: edits(&route.response_headers_to_add, &route.response_headers_to_remove)
            .within("response_headers_to_add")?,
        ..Filters::default()
    })
}

pub(super) fn of_cluster(cluster: &ClusterWeight) -> Result<Filters, Refusal> {
    Ok(Filters {
        request_headers: edits(&cluster.request_headers_to_add, &cluster.request_headers_to_remove)
            .within("request_headers_to_add")?,
        response_headers: edits(&cluster.response_headers_to_add, &cluster.response_headers_to_remove)
            .within("response_headers_to_add")?,
        ..Filters::default()
    })
}

/// Envoy removes first, then goes through the list; ours sets first and adds then. So what is set takes away what was
/// set or added to the same header before it.
fn edits(added: &[HeaderValueOption], removed: &[String]) -> Result<HeaderEdits, Refusal> {
    let mut edits =
        HeaderEdits { remove: removed.iter().map(|name| lower(name)).collect(), ..HeaderEdits::default() };
    for (index, option) in added.iter().enumerate() {
        let place = |refusal: Refusal| refusal.within(&format!("[{index}]"));
        let Some(header) = &option.header else {
            return Err(place(Refusal::at("header", "there is none")));
        };
        if header.value.is_empty() && !option.keep_empty_value {
            continue;
        }
        let value = literal(&header.value).map_err(|refusal| place(refusal.within("header.value")))?;
        let entry = HeaderValue { name: lower(&header.key), value: value.into() };
        match action(option).map_err(place)? {
            AppendAction::OverwriteIfExistsOrAdd => {
                edits.set.retain(|own| own.name != entry.name);
                edits.add.retain(|own| own.name != entry.name);
                edits.set.push(entry);
            }
            AppendAction::AppendIfExistsOrAdd => edits.add.push(entry),
            other @ (AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists) => {
                return Err(place(Refusal::at(
                    "append_action",
                    format!("{} is not supported", other.as_str_name()),
                )));
            }
        }
    }
    Ok(edits)
}

fn action(option: &HeaderValueOption) -> Result<AppendAction, Refusal> {
    match option.append {
        Some(true) => Ok(AppendAction::AppendIfExistsOrAdd),
        Some(false) => Ok(AppendAction::OverwriteIfExistsOrAdd),
        None => AppendAction::try_from(option.append_action)
            .map_err(|_| Refusal::at("append_action", format!("{} is not supported", option.append_action))),
    }
}

/// The text that Envoy would put: a doubled percent sign is one, and a single one begins a command.
fn literal(value: &str) -> Result<String, Refusal> {
    let pieces: Vec<_> = value.split("%%").collect();
    if pieces.iter().any(|piece| piece.contains('%')) {
        return Err(Refusal::new(format!("commands such as those in {value:?} are not supported")));
    }
    Ok(pieces.join("%"))
}
