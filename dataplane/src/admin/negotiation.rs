//! Which of several forms of a page a client takes (RFC 9110 section 12.5).

/// Whether a list header (`Accept`, `Accept-Encoding`) names `form` itself with a weight that is not zero. A wildcard
/// does not count: what takes anything is best served with the plain form.
pub(super) fn accepts(header: &str, form: &str) -> bool {
    header.split(',').any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(form));
        named && !parts.any(is_refusal)
    })
}

/// A weight of zero.
fn is_refusal(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return false };
    name.trim().eq_ignore_ascii_case("q") && value.trim().parse() == Ok(0.0_f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_where_it_is_named_and_not_refused() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert!(accepts(prometheus, "application/openmetrics-text"));
        assert!(accepts("deflate, GZIP;q=0.8", "gzip"));
        for header in ["", "*/*", "gzip;q=0", "gzip; Q = 0.000", "gzipped", "br"] {
            assert!(!accepts(header, "gzip"), "{header}");
        }
    }

    #[test]
    fn fuzz_headers_are_read_without_failing() {
        bolero::check!().with_type::<String>().for_each(|header| {
            if accepts(header, "gzip") {
                assert!(header.to_ascii_lowercase().contains("gzip"));
            }
        });
    }
}
