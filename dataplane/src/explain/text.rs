//! The explanation for people.

use std::fmt;

use super::report::{
    Backend, Decision, Endpoint, Explanation, Pod, Policy, Route, Shown, Transport, Waypoint,
};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.decision.label())?;
        if let Some(status) = self.status {
            write!(f, " ({status})")?;
        }
        writeln!(f, ": {}\n", self.reason)?;
        writeln!(f, "from      {}", self.from)?;
        write!(f, "to        {} is {}", self.to.asked, self.to.address)?;
        writeln!(f, ", {}", self.to.resolved)?;
        if let Some(service) = &self.to.service {
            write!(f, "service   {}", service.hostname)?;
            in_file(f, service.source.as_ref())?;
        } else if let Some(pod) = &self.to.pod {
            writeln!(f, "pod       {pod}")?;
        }
        writeln!(f, "request   {}", self.request)?;
        if let Some(waypoint) = &self.waypoint {
            write!(f, "{waypoint}")?;
        }
        if let Some(route) = &self.route {
            write!(f, "{route}")?;
        }
        for backend in &self.backends {
            backend.tell(f, self.route.is_some())?;
        }
        for problem in &self.problems {
            writeln!(f, "\n{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(address) = self.address {
            write!(f, " {address}")?;
        }
        match &self.identity {
            Some(identity) => write!(f, " as {identity}")?,
            None => f.write_str(", not in the mesh")?,
        }
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        if let Some(query) = &self.query {
            write!(f, "?{query}")?;
        }
        write!(f, " to {}", self.authority)?;
        for (name, value) in &self.headers {
            write!(f, "; {name}: {value}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route     {} {}/{}, rule {}", self.kind, self.namespace, self.name, self.rule)?;
        if let Some(name) = &self.rule_name {
            write!(f, " {name:?}")?;
        }
        write!(f, ", match {}", self.matched)?;
        in_file(f, self.source.as_ref())?;
        if let Some(condition) = &self.condition {
            writeln!(f, "          matches {}", json(condition))?;
        }
        if let Some(filters) = &self.filters {
            writeln!(f, "          filters {}", json(filters))?;
        }
        if !self.timeouts.is_off() {
            writeln!(f, "          timeouts {}", json(&self.timeouts))?;
        }
        if let Some(retry) = &self.retry {
            writeln!(f, "          retries {}", json(retry))?;
        }
        if let Some(fault) = &self.fault {
            writeln!(f, "          faults {}", json(fault))?;
        }
        Ok(())
    }
}

impl Backend {
    fn tell(&self, f: &mut fmt::Formatter<'_>, routed: bool) -> fmt::Result {
        if routed {
            match &self.target {
                Some(target) => write!(f, "backend   {}:{}", target.service, target.port)?,
                None => f.write_str("backend   none")?,
            }
            write!(f, ", {:.0}% of the requests: {}", self.share * 100.0, self.decision.label())?;
            if let Some(status) = self.status {
                write!(f, " ({status})")?;
            }
            in_file(f, self.target.as_ref().and_then(|target| target.source.as_ref()))?;
            if self.decision == Decision::Answered || self.decision == Decision::Redirected {
                writeln!(f, "          {}", self.reason)?;
            }
        }
        if let Some(filters) = &self.filters {
            writeln!(f, "          filters {}", json(filters))?;
        }
        if let Some(forwarded) = &self.forwarded {
            writeln!(f, "          becomes {forwarded}")?;
        }
        self.endpoints.iter().try_for_each(|endpoint| write!(f, "{endpoint}"))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "endpoint  {}", self.pod)?;
        if let Some(why_not) = &self.why_not {
            return writeln!(f, "          is not chosen: {why_not}");
        }
        if let Some(transport) = &self.transport {
            writeln!(f, "          {transport}")?;
        }
        self.policy.as_ref().map_or(Ok(()), |policy| write!(f, "{policy}"))
    }
}

impl fmt::Display for Waypoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "waypoint  {}", self.pod)?;
        writeln!(f, "          {}", self.transport)?;
        self.policy.as_ref().map_or(Ok(()), |policy| write!(f, "{policy}"))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { to } => write!(f, "by plain TCP to {to}"),
            Self::Hbone { next_hop, authority, .. } => write!(f, "by HBONE to {next_hop}, for {authority}"),
            Self::DoubleHbone { next_hop, authority, .. } => {
                write!(f, "by HBONE to the network gateway {next_hop}, for {authority}")
            }
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "allowed" } else { "denied" };
        writeln!(f, "          {verdict}: {}", self.reason)?;
        for rule in &self.unmatched {
            writeln!(f, "            {rule}")?;
        }
        for rule in &self.asks {
            writeln!(f, "          is asked about: {rule}")?;
        }
        match &self.dry_run {
            Some(dry_run) => writeln!(f, "          if dry-run policies were enforced: {dry_run}"),
            None => Ok(()),
        }
    }
}

/// Ends a line with where it is written.
fn in_file(f: &mut fmt::Formatter<'_>, source: Option<&model::SourceRef>) -> fmt::Result {
    match source {
        Some(source) => writeln!(f, " ({source})"),
        None => writeln!(f),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    // Plain data, which always serialises.
    serde_json::to_string(value).unwrap_or_default()
}
